"""Fixed wavelet features under one trained layer: the strongest small network where the noise is strong.

With few patients and a small epsilon, features that need no training beat learnt ones (Tramèr and Boneh 2021,
Differentially Private Learning Needs Better Features): the noise then falls on a few hundred weights.
Nothing here is learnt from or fitted to patients; the constants come from the formulae and from generated noise images,
and, where `components` are asked for, from public or generated images by way of a weights file (`fedimaging pretrain`).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedimaging.errors import StudyError, bad_value

_FLOOR = 1e-2
_NORM = 2.0


class WaveletNet(nn.Module):
    """Each scan standardised by its own mean and deviation; Gabor wavelets of `angles` directions at `scales`
    octaves; the logarithm of their modulus, averaged over a `grid` x `grid` of cells, beside the cell means of the
    image; one linear layer. 2-D, any number of channels (each filtered by itself).

    The feature vector has a norm near 2, so that with a clip norm of 1 most gradients are near their bound. With
    `components` above 0 the layer sees so many whitened principal components of the features instead, scaled to that norm:
    directions that all images share no longer use up the clip, and fewer numbers meet the noise. Which directions, the
    buffers `centre` (F,) and `projection` (F, components) say; `fit_components` sets them.
    """

    FITTED = ("centre", "projection")
    offset: Tensor
    centre: Tensor
    projection: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, image_size: tuple[int, ...], scales: int, angles: int, grid: int,
        components: int = 0,
    ) -> None:
        super().__init__()
        self.scales, self.grid, self.components = scales, grid, components
        for scale in range(scales):
            self.register_buffer(f"filters_{scale}", _gabor_filters(scale, angles))
        size = in_channels * grid**2 * (1 + scales * angles)
        self.register_buffer("offset", torch.zeros(size // in_channels))
        self.offset.copy_(self._channel_features(_noise_images(image_size)).mean(0))
        if components > size:
            rule = f"is above the {size} wavelet features of {in_channels} channel(s)"
            raise StudyError(bad_value("model.options.components", components, rule, "lower it"))
        if components:
            self.register_buffer("centre", torch.zeros(size))
            self.register_buffer("projection", torch.eye(size, components))
        self.head = nn.Linear(components or size, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, K)."""
        features = self._features(x)
        if not self.components:
            return self.head(features * (_NORM / math.sqrt(self.head.in_features)))
        return self.head(_NORM * F.normalize((features - self.centre) @ self.projection))

    def fit_components(self, images: Tensor, ridge: float = 0.03) -> None:
        """Set `centre` and `projection` from images (N, C, H, W) of nobody who is to be protected, N above `components`.

        Directions of the largest variance, each divided by its deviation; `ridge` (a share of the largest variance) is
        added to each variance, so that directions the images hardly use are not blown up. Error: StudyError.
        """
        if len(images) <= self.components:
            rule = f"images are too few for {self.components} components"
            raise StudyError(bad_value("number of images", len(images), rule, "give more images, or lower components"))
        with torch.no_grad():
            features = torch.cat([self._features(part) for part in images.split(64)]).double()
        centre = features.mean(0)
        variances, directions = torch.linalg.eigh((features - centre).T @ (features - centre) / (len(images) - 1))
        variances, directions = variances.flip(0)[: self.components], directions.flip(1)[:, : self.components]
        self.centre.copy_(centre)
        self.projection.copy_(directions / (variances + ridge * variances[0]).sqrt())

    def _features(self, x: Tensor) -> Tensor:
        # (B, C, H, W) -> (B, F)
        batch, channels = x.shape[:2]
        return (self._channel_features(x.reshape(batch * channels, 1, *x.shape[2:])) - self.offset).reshape(batch, -1)

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
