"""A small convolutional network for 28 to 64 pixel images, made for training with noise."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AVERAGE = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_ADAPTIVE = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class SmallCNN(nn.Module):
    """`depth` stages of (3x3 convolution, normalisation, activation, average pooling by 2), then the features pooled
    to a `grid` of cells and one linear layer.

    The norm of the noise that DP-SGD adds grows with the square root of the number of parameters, so width is small
    and every tensor earns its place: no bias before a norm, average pooling instead of strided convolutions, no
    hidden linear layer. A bounded activation keeps activations from drifting under noise (Papernot et al. 2021, Tempered Sigmoid
    Activations for Deep Learning with Differential Privacy).
    """

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, *, width: int, depth: int, grid: int, activation: str
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = in_channels
        for stage in range(depth):
            wider = width * 2 ** min(stage, 2)
            stages += [
                _CONV[dims](channels, wider, kernel_size=3, padding=1, bias=False),
                _BATCH_NORM[dims](wider),
                ACTIVATIONS[activation](),
                _AVERAGE[dims](2, ceil_mode=True),
            ]
            channels = wider
        self.features = nn.Sequential(*stages)
        self.pool = _ADAPTIVE[dims](grid)
        self.head = nn.Linear(channels * grid**dims, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *spatial) -> (B, K)."""
        return self.head(torch.flatten(self.pool(self.features(x)), 1))
