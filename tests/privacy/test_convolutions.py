"""Each way to a convolution's unit gradients, their norms and their sum, beside autograd on one unit after another."""

import pytest
import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping import convolution_grams
from fedimaging.privacy.clipping.convolutions import CONVOLUTIONS
from fedimaging.privacy.clipping.rules import shaped

GRAMS = {
    "dense": nn.Conv2d(12, 24, 3, padding=1),
    "dense, no padding": nn.Conv2d(12, 24, 3),
    "more padding than kernel": nn.Conv2d(12, 24, 3, padding=4),
    "kernel larger than the scan": nn.Conv2d(12, 24, 9, padding=4),
    "uneven": nn.Conv2d(12, 24, (1, 5), padding=(0, 3)),
    "dilated": nn.Conv2d(12, 24, 3, padding=2, dilation=2),
    "same, dilated": nn.Conv2d(12, 24, 3, padding="same", dilation=3),
    "strided": nn.Conv2d(48, 24, 3, stride=2, padding=1),
    "strided, dilated": nn.Conv2d(48, 24, 3, stride=3, padding=1, dilation=2),
    "stride above the kernel": nn.Conv2d(48, 24, 2, stride=3),
    "grouped": nn.Conv2d(12, 24, 3, padding=1, groups=3),
    "grouped, strided": nn.Conv2d(24, 24, 3, stride=2, groups=2),
    "points": nn.Conv2d(12, 24, 1),
    "points and output padding": nn.ConvTranspose2d(12, 24, 1, dilation=2, output_padding=1),
    "padded points": nn.Conv2d(12, 24, 1, padding=1),
    "strided points": nn.Conv2d(12, 24, 1, stride=2),
    "transposed": nn.ConvTranspose2d(12, 24, 3, padding=1),
    "transposed, strided": nn.ConvTranspose2d(12, 24, 3, stride=2, padding=1, output_padding=1),
    "transposed, grouped": nn.ConvTranspose2d(12, 24, 3, stride=2, groups=4),
    "line": nn.Conv1d(12, 24, 5, stride=2, padding=2),
    "volume": nn.Conv3d(6, 12, 3, padding=1),
    "volume, strided": nn.Conv3d(12, 12, (3, 2, 3), stride=(2, 1, 2), padding=(1, 0, 1)),
    "volume, transposed": nn.ConvTranspose3d(6, 12, 2, stride=2),
}
SIZE = {1: (11,), 2: (7, 5), 3: (4, 3, 5)}


def _setting(layer: nn.Module, scans: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtype = layer.weight.dtype
    a = torch.randn(scans, layer.in_channels, *SIZE[len(layer.kernel_size)], generator=generator, dtype=dtype)
    shape = layer(a).shape
    return a, torch.randn(shape, generator=generator, dtype=dtype)


def _by_unit(layer: nn.Module, a: Tensor, g: Tensor, units: int) -> list[Tensor]:
    pieces = zip(a.chunk(units), g.chunk(units), strict=True)
    return [torch.autograd.grad((layer(x) * weight).sum(), layer.weight)[0] for x, weight in pieces]


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("units", [6, 2], ids=["one scan each", "three scans each"])
@pytest.mark.parametrize("costs", [(0, 1), (1, 0)], ids=["from pixels", "from patches"])
@pytest.mark.parametrize("layer", GRAMS.values(), ids=GRAMS)
def test_norms_from_gram_matrices(
    layer: nn.Module, costs: tuple[float, float], units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_grams, "_costs", lambda *_: costs)
    layer = layer.double()
    a, g = _setting(layer)
    expected = torch.stack([part.square().sum() for part in _by_unit(layer, a, g, units)])
    with torch.no_grad():
        found = CONVOLUTIONS[type(layer)].product.squares(layer, a, g, units)
    assert _relative(found, expected) < 1e-13


@pytest.mark.parametrize("layer", [
    nn.Conv2d(300, 400, 3, padding=1), nn.Conv2d(300, 400, 3, padding=2, dilation=2, stride=2),
    nn.ConvTranspose2d(300, 400, 3, padding=1), nn.Conv2d(300, 400, (5, 3), padding=(2, 1)),
], ids=["dense", "strided, dilated", "transposed", "uneven"])  # fmt: skip
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1)])
def test_weight_gradients_at_few_places(layer: nn.Module, size: tuple[int, int]) -> None:
    layer, a = layer.double(), torch.randn(4, 300, *size, dtype=torch.float64)
    g = torch.randn(layer(a).shape, dtype=torch.float64)
    with torch.no_grad():
        found = CONVOLUTIONS[type(layer)].product.weighted(layer, a, g)
    assert _relative(found, _by_unit(layer, a, g, 1)[0]) < 1e-13


@pytest.mark.parametrize("units", [6, 2], ids=["one scan each", "three scans each"])
@pytest.mark.parametrize("layer", [
    nn.Conv2d(10, 10, 5, padding=2, groups=10), nn.Conv2d(10, 10, 5, stride=2, padding=3, groups=10),
    nn.Conv2d(10, 10, (2, 5), dilation=(3, 1), groups=10), nn.Conv2d(10, 10, 4, padding="same", dilation=2, groups=10),
    nn.Conv1d(10, 10, 11, padding=5, groups=10), nn.Conv3d(10, 10, 3, padding=1, groups=10),
    nn.Conv2d(1, 8, 7, stride=2, padding=3),
], ids=["wide kernel", "strided", "dilated", "same", "line", "volume", "one channel"])  # fmt: skip
def test_unit_gradients_of_large_kernels(layer: nn.Module, units: int) -> None:
    layer = layer.double()
    a, g = _setting(layer)
    with torch.no_grad():
        found = CONVOLUTIONS[type(layer)].unit_gradients(layer, a, g, units, {"weight"})["weight"]
    for unit, expected in enumerate(_by_unit(layer, a, g, units)):
        assert _relative(shaped(found[:, unit], layer.weight), expected) < 1e-13
