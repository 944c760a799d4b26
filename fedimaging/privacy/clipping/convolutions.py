"""Unit gradients of convolutions: columns are the patches under the kernel; transposed ones exchange input and output.

Legend as in `rules`; "narrow" and "wide" as in `patches`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedimaging.privacy.clipping.convolution_grams import conv_grams, gram_cost
from fedimaging.privacy.clipping.patches import Conv, is_dense, is_pointwise, meetings, padded, padding, sides, unrolled
from fedimaging.privacy.clipping.rules import Product, Rule, UnitGradients, blocks

_LARGE_VOLUME = 1 << 22  # numbers of a scan unrolled; above, one call a unit is quicker
_VECTOR = 16  # float32 numbers of an AVX-512 register, oneDNN's block of channels
_FEW_COLUMNS = 64  # and not whole vectors: a product with these as its rows is quicker
_FEW_PLACES = 8  # of a scan, where oneDNN's weight gradient takes up to five times as long as plain products
_MANY_WEIGHTS = 1 << 18  # below which the calls for these would take longer
_MOST_TAPS = 9  # weights of a depthwise kernel for which oneDNN has vector code
_FEW_STRIDED = 1 << 15  # weights of a strided kernel; with more of them, unrolled patches are quicker


def _refuse_conv(layer: nn.Module) -> str | None:
    layer = cast(Conv, layer)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same" and any(span % 2 for span in spans):
        return "padding 'same' with an even kernel"
    return None if layer.padding_mode == "zeros" else f"padding mode {layer.padding_mode!r}"


def _conv_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    layer = cast(Conv, layer)
    found = {}
    if "weight" in names:
        found["weight"] = _way(layer, a)(layer, a, g, n)
    if "bias" in names:
        by_scan = g.flatten(2).sum(2)
        found["bias"] = (by_scan if len(g) == n else by_scan.view(n, -1, g.shape[1]).sum(1))[None]
    return found


def _way(layer: Conv, a: Tensor) -> Callable[[Conv, Tensor, Tensor, int], Tensor]:
    """The quickest of the ways below, as measured: oneDNN, which serves float32 on a CPU, has kernels for planes of many
    groups, but for large depthwise ones, and for volumes whose channels fill whole vectors; a large volume keeps a machine
    busy alone, and unrolling it would move 27 times its bytes or more."""
    if is_pointwise(layer):
        return _by_points
    if a.device.type == "cpu" and _is_depthwise(layer) and layer.weight[0].numel() > _MOST_TAPS:
        return _by_taps
    planes = a.device.type == "cpu" and a.dtype == torch.float32 and len(layer.kernel_size) == 2
    strided = max(layer.kernel_size) > 1 < layer.weight.shape[1] and layer.weight.numel() <= _FEW_STRIDED
    if planes and torch.backends.mkldnn.is_available() and (is_dense(layer) or layer.groups > 1 or strided):
        return _as_groups
    if _fits_vectors(layer, a) and torch.backends.mkldnn.is_available():
        return _as_vectors if layer.groups == 1 else _as_groups
    if is_dense(layer) and not a.is_cuda:
        return _by_offset
    numbers = a[0].numel() * torch.Size(layer.kernel_size).numel()
    return _one_by_one if len(layer.kernel_size) == 3 and numbers > _LARGE_VOLUME else _by_patches


def _by_points(layer: Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    """A product of two matrices for each scan, as they lie."""
    narrow, wide = sides(layer, a, g)
    by_scan = torch.bmm(narrow.flatten(2), wide.flatten(2).mT)
    return by_scan.view(1, n, -1) if len(a) == n else by_scan.view(1, n, len(a) // n, -1).sum(2)


def _is_depthwise(layer: Conv) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels and not layer.transposed


def _by_taps(layer: Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    """Each weight of a depthwise kernel, for all scans and channels at once, which lie innermost: over all places, the sum
    of the gradient times the input that the weight meets there."""
    wide, rows = (_places_first(x) for x in (padded(a, layer), g))
    by_scan = a.new_empty(layer.weight[0].numel(), rows.shape[-1])
    for offset, target in zip(product(*(range(size) for size in layer.kernel_size)), by_scan, strict=True):
        steps = zip(offset, layer.dilation, layer.stride, g.shape[2:], strict=True)
        window = wide[tuple(slice(o * d, o * d + (size - 1) * s + 1, s) for o, d, s, size in steps)]
        torch.sum((window * rows).flatten(0, -2), 0, out=target)
    by_scan = by_scan.view(len(by_scan), n, -1, layer.groups)
    return by_scan.squeeze(2) if len(a) == n else by_scan.sum(2)


def _places_first(x: Tensor) -> Tensor:
    """(S, C, *spatial) -> (*spatial, S C)"""
    return x.flatten(0, 1).flatten(1).t().contiguous().view(*x.shape[2:], -1)


def _as_groups(layer: Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    """All units side by side as groups of one convolution, whose weight gradient then is every unit's own."""
    return _of_groups(layer, a, g, n, layer.weight.shape[:2]).reshape(1, n, -1)


def _as_vectors(layer: Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    """As groups, with channels of zeros added until they fill whole vectors."""
    rows, columns = layer.weight.shape[:2]
    more = [-rows % _VECTOR, -columns % _VECTOR]
    if not any(more):
        return _as_groups(layer, a, g, n)
    ends = [0] * 2 * len(layer.kernel_size)
    a, g = (F.pad(x, [*ends, 0, count]) for x, count in zip((a, g), more if layer.transposed else reversed(more), strict=True))
    found = _of_groups(layer, a, g, n, (rows + more[0], columns + more[1]))
    return found[:, :rows, :columns].reshape(1, n, -1)


def _of_groups(layer: Conv, a: Tensor, g: Tensor, n: int, channels: Sequence[int]) -> Tensor:
    a, g = (_side_by_side(x, n) for x in (a, g))
    only_shape = layer.weight.new_empty(n * channels[0], channels[1], *layer.kernel_size)
    found = _weight_gradient(layer, only_shape, a, g, n * layer.groups)
    return found.unflatten(0, (n, -1))


def _side_by_side(x: Tensor, n: int) -> Tensor:
    """(S, C, ...) -> (K, U C, ...)"""
    if len(x) == n:
        return x.reshape(1, -1, *x.shape[2:])
    return x.unflatten(0, (n, -1)).transpose(0, 1).reshape(len(x) // n, -1, *x.shape[2:])


def _fits_vectors(layer: Conv, a: Tensor) -> bool:
    """Volumes whose groups of channels fill whole vectors, or do so once they are at most doubled: oneDNN has kernels of many
    groups for these too."""
    volume = a.device.type == "cpu" and a.dtype == torch.float32 and len(layer.kernel_size) == 3
    rows, columns = layer.weight.shape[0] // layer.groups, layer.weight.shape[1]
    filled = (rows + -rows % _VECTOR) * (columns + -columns % _VECTOR)
    return volume and max(layer.kernel_size) > 1 and filled <= (2 if layer.groups == 1 else 1) * rows * columns


def _one_by_one(layer: Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    """Each unit's weight gradient as the library gives it."""
    pieces = zip(a.unflatten(0, (n, -1)).unbind(), g.unflatten(0, (n, -1)).unbind(), strict=True)
    return torch.stack([_weight_gradient(layer, layer.weight, *piece, layer.groups).flatten() for piece in pieces])[None]


def _by_patches(layer: Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    out = a.new_empty(n, layer.groups, layer.weight.shape[0] // layer.groups, layer.weight[0].numel())
    first = 0
    few = layer.weight[0].numel() < _FEW_COLUMNS and layer.weight[0].numel() % _VECTOR
    for rows, columns in unrolled(layer, a, g, n):
        part = out[first : first + len(rows)]
        if few:
            part.copy_((columns @ rows.mT).mT)
        else:
            torch.matmul(rows, columns.mT, out=part)
        first += len(rows)
    return out.view(1, n, -1)


def _grid(layer: Conv, wide: Tensor) -> list[int]:
    return [size + 2 * pad for size, pad in zip(wide.shape[2:], padding(layer), strict=True)]


def _on_grids(layer: Conv, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[slice, Tensor, Tensor, list[int]]]:
    """Blocks of units (of groups): rows (U G, D / G, length), columns (U G, C / G, all of the grid), and the shifts.

    The narrow side is laid out on the padded grid too, with zeros where it has no value; so a shift that runs over
    the end of a line, or into the next scan of the unit, meets zeros.
    """
    narrow, wide = sides(layer, a, g)
    grid, shifts, groups, scans = _grid(layer, wide), _shifts(layer, _grid(layer, wide)), layer.groups, len(a) // n
    length = scans * torch.Size(grid).numel() - shifts[-1]
    for run in blocks(n, length * (narrow.shape[1] + wide.shape[1]), a.device):
        rows = slice(run.start * scans, run.stop * scans)
        units = run.stop - run.start
        left = _on_grid(narrow[rows], units, grid, [0] * len(grid)).view(units * groups, -1, length + shifts[-1])
        right = _on_grid(wide[rows], units, grid, padding(layer)).view(units * groups, -1, length + shifts[-1])
        yield slice(run.start * groups, run.stop * groups), left[..., :length], right, shifts


def _by_offset(layer: Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    rows = layer.weight.shape[0] // layer.groups
    out = a.new_empty(torch.Size(layer.kernel_size).numel(), n * layer.groups, rows, layer.weight.shape[1])
    for run, left, right, shifts in _on_grids(layer, a, g, n):
        for shift, target in zip(shifts, out[:, run], strict=True):
            torch.bmm(left, right[..., shift : shift + left.shape[-1]].mT, out=target)
    return out.view(len(out), n, -1)


def _shifts(layer: Conv, grid: list[int]) -> list[int]:
    """Each kernel offset as a distance in the flattened grid, in the kernel's order."""
    steps = [torch.Size(grid[dim + 1 :]).numel() * layer.dilation[dim] for dim in range(len(grid))]
    offsets = product(*(range(size) for size in layer.kernel_size))
    return [sum(step * index for step, index in zip(steps, offset, strict=True)) for offset in offsets]


def _on_grid(x: Tensor, n: int, grid: list[int], start: list[int]) -> Tensor:
    """(S, C, *spatial) -> (U, C, K, *grid) with zeros around each scan."""
    out = x.new_zeros(n, x.shape[1], len(x) // n, *grid)
    inner = out
    for dim, (first, size) in enumerate(zip(start, x.shape[2:], strict=True), start=3):
        inner = inner.narrow(dim, first, size)
    inner.copy_(x.unflatten(0, (n, -1)).transpose(1, 2))
    return out


def _conv_weighted(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    layer = cast(Conv, layer)
    narrow, _ = sides(layer, a, g)
    few = narrow.shape[2:].numel() <= _FEW_PLACES and layer.weight.numel() > _MANY_WEIGHTS
    if a.device.type == "cpu" and layer.groups == 1 and few:
        return _at_few_places(layer, a, g)
    return _weight_gradient(layer, layer.weight, a, g, layer.groups)


def _at_few_places(layer: Conv, a: Tensor, g: Tensor) -> Tensor:
    """Offset by offset, of which most meet more padding than pixels there: a product over the places where it meets pixels."""
    narrow, wide = (x.permute(0, *range(2, x.dim()), 1) for x in sides(layer, a, g))
    found = torch.zeros_like(layer.weight)
    dims = len(layer.kernel_size)
    for met in product(*(meetings(layer, dim, narrow.shape[1 + dim], wide.shape[1 + dim]) for dim in range(dims))):
        offset, places, pixels = zip(*met, strict=True)
        rows, columns = (x[(slice(None), *at)].flatten(0, -2) for x, at in ((narrow, places), (wide, pixels)))
        found[(slice(None), slice(None), *offset)] = rows.mT @ columns
    return found


def _weight_gradient(layer: Conv, weight: Tensor, a: Tensor, g: Tensor, groups: int) -> Tensor:
    found = torch.ops.aten.convolution_backward(
        g, a, weight, None, list(layer.stride), padding(layer), list(layer.dilation), layer.transposed,
        list(layer.output_padding), groups, [False, True, False],
    )  # fmt: skip
    return cast(Tensor, found[1])


def _conv_run(layer: nn.Module, x: Tensor) -> Tensor:
    """The forward pass; where a scan is down to one place, all but the kernel's middle meets zeros and is left out."""
    layer = cast(Conv, layer)
    if x.shape[2:].numel() > 1 or max(layer.kernel_size) == 1 or layer.transposed or layer.groups > 1:
        return type(layer).forward(cast(Any, layer), x)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    odd = all(size % 2 for size in layer.kernel_size)
    if not odd or any(span != 2 * pad for span, pad in zip(spans, padding(layer), strict=True)):
        return type(layer).forward(cast(Any, layer), x)
    middle: tuple[slice | int, ...] = (slice(None), slice(None), *(size // 2 for size in layer.kernel_size))
    return F.linear(x.flatten(1), layer.weight[middle], layer.bias).view(len(x), -1, *x.shape[2:])


def _conv(kind: type[nn.Module]) -> Rule:
    product = Product(conv_grams, gram_cost, _conv_weighted)
    return Rule(kind.forward, _conv_gradients, product, run=_conv_run, refuse=_refuse_conv)


CONVOLUTIONS: dict[type[nn.Module], Rule] = {
    kind: _conv(kind)
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
}
"""Every convolution, plain and transposed."""
