"""Fixed wavelet features under one trained layer: the strongest small network where the noise is strong.

With few patients and a small epsilon, features that need no training beat learnt ones (Tramèr and Boneh 2021,
Differentially Private Learning Needs Better Features): the noise then falls on a few hundred weights.
Nothing here is learnt from or fitted to patients; the constants come from the formulae and from generated noise images.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FLOOR = 1e-2
_NORM = 2.0


class WaveletNet(nn.Module):
    """Each scan standardised by its own mean and deviation; Gabor wavelets of `angles` directions at `scales`
    octaves; the logarithm of their modulus, averaged over a `grid` x `grid` of cells, beside the cell means of the
    image; one linear layer. 2-D, any number of channels (each filtered by itself).

    The feature vector has a norm near 2, so that with a clip norm of 1 most gradients are near their bound.
    """

    offset: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, image_size: tuple[int, ...], scales: int, angles: int, grid: int
    ) -> None:
        super().__init__()
        self.scales, self.grid = scales, grid
        for scale in range(scales):
            self.register_buffer(f"filters_{scale}", _gabor_filters(scale, angles))
        size = in_channels * grid**2 * (1 + scales * angles)
        self.register_buffer("offset", torch.zeros(size // in_channels))
        self.offset.copy_(self._channel_features(_noise_images(image_size)).mean(0))
        self.head = nn.Linear(size, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, K)."""
        batch, channels = x.shape[:2]
        features = self._channel_features(x.reshape(batch * channels, 1, *x.shape[2:])) - self.offset
        return self.head(features.reshape(batch, -1) * (_NORM / math.sqrt(self.head.in_features)))

    def _channel_features(self, x: Tensor) -> Tensor:
        # (N, 1, H, W) -> (N, grid^2 (1 + scales angles)), the logarithms doubled to weigh like the cell means.
        spread, mean = torch.std_mean(x, (2, 3), keepdim=True)
        x = (x - mean) / (spread + 1e-3)
        parts = [F.adaptive_avg_pool2d(x, self.grid).flatten(1)]
        for scale in range(self.scales):
            filters = self.get_buffer(f"filters_{scale}")
            padded = F.pad(x, (filters.shape[-1] // 2,) * 4, mode="replicate")
            real, imaginary = F.conv2d(padded, filters, stride=2**scale).chunk(2, dim=1)
            modulus = (real.square() + imaginary.square() + _FLOOR**4).sqrt()
            cells = F.adaptive_avg_pool2d(modulus, self.grid).flatten(1)
            parts.append(2 * torch.log(cells + _FLOOR))
        return torch.cat(parts, 1)


def _gabor_filters(scale: int, angles: int) -> Tensor:
    """(2 angles, 1, S, S): real parts, then imaginary parts, of zero-mean Gabor wavelets of wavelength 8/3 * 2^scale."""
    sigma, frequency = 0.8 * 2**scale, 0.75 * math.pi / 2**scale
    half = min(int(3 * sigma), 7 * 2 ** max(scale - 2, 0))
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    real, imaginary = [], []
    for angle in np.pi * np.arange(angles) / angles:
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = rows * np.cos(angle) - columns * np.sin(angle)
        envelope = np.exp(-(along**2 + across**2 / 4) / (2 * sigma**2))
        envelope /= envelope.sum()
        wave = envelope * np.cos(frequency * along)
        real.append(wave - envelope * wave.sum())
        imaginary.append(envelope * np.sin(frequency * along))
    return torch.tensor(np.stack(real + imaginary)[:, None], dtype=torch.float32)


def _noise_images(image_size: tuple[int, ...], count: int = 64) -> Tensor:
    """(count, 1, H, W) images whose amplitude falls with frequency as 1/f, as that of natural images does. The same
    on every call: they set the zero of the logarithms."""
    white = np.random.Generator(np.random.PCG64(0)).standard_normal((count, 1, *image_size))
    axes = [np.fft.fftfreq(side) for side in image_size]
    frequency = np.maximum(np.hypot(axes[0][:, None], axes[1][None]), 1 / max(image_size))
    images = np.fft.ifft2(np.fft.fft2(white) / frequency).real
    return torch.tensor(images, dtype=torch.float32)
