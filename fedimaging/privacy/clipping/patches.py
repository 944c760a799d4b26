"""Where the places of a convolution lie: sides, padding, and the patches under its kernel.

Legend as in `rules`; "narrow" is the side with one place per product (a convolution's output), "wide" the padded one;
transposed convolutions exchange input and output.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedimaging.privacy.clipping.rules import blocks

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
"""Every kind of convolution, plain and transposed."""


def sides(layer: Conv, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The narrow and the wide one of a layer's input and its output's gradient."""
    return (a, g) if layer.transposed else (g, a)


def is_plain(layer: Conv) -> bool:
    """Whether each place of one side meets the same place of the other, and no more."""
    return max(*layer.kernel_size, *layer.stride) == 1 and not any(padding(layer)) and not any(layer.output_padding)


def is_pointwise(layer: Conv) -> bool:
    return layer.groups == 1 and is_plain(layer)


def is_dense(layer: Conv) -> bool:
    """At stride 1 a kernel offset is a shift of the flattened padded image, and nothing needs to be unrolled."""
    return max(layer.stride) == 1 < max(layer.kernel_size)


def padding(layer: Conv) -> list[int]:
    if isinstance(layer.padding, str):
        span = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [total // 2 if layer.padding == "same" else 0 for total in span]
    return list(layer.padding)


def padded(x: Tensor, layer: Conv) -> Tensor:
    """The wide side with the layer's zeros around each scan."""
    pads = [size for size in reversed(padding(layer)) for _ in range(2)]
    return F.pad(x, pads) if any(pads) else x


def meetings(layer: Conv, dim: int, narrow: int, wide: int) -> Iterator[tuple[int, slice, slice]]:
    """Along a spatial dimension, each kernel offset that meets pixels: itself, the places where it does, and these pixels."""
    stride, pad = layer.stride[dim], padding(layer)[dim]
    for index in range(layer.kernel_size[dim]):
        shift = index * layer.dilation[dim] - pad
        first = max(0, -(shift // stride))
        last = min(narrow - 1, (wide - 1 - shift) // stride)
        if first <= last:
            yield index, slice(first, last + 1), slice(first * stride + shift, last * stride + shift + 1, stride)


def patches_at(narrow: Tensor, wide: Tensor, layer: Conv) -> Tensor:
    """(S, C, *kernel, *positions): what lies under the kernel at each place of the narrow side; a view of the padded wide one.

    Windows that an output padding leaves, which no input reached, are left out.
    """
    dims = len(layer.kernel_size)
    view = padded(wide, layer)
    for dim, (kernel, stride, step) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        view = view.unfold(dim, step * (kernel - 1) + 1, stride)[..., ::step].narrow(dim, 0, narrow.shape[dim])
    return view.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))


def _matrix(x: Tensor, n: int, groups: int, positions: int) -> Tensor:
    """(S, C, ..., *positions), the last `positions` dimensions -> (U, G, C ... / G, T)."""
    x = x.unflatten(0, (n, -1))
    dims = x.dim()
    moved = x.permute(0, *range(2, dims - positions), 1, *range(dims - positions, dims))
    length = x.shape[1] * x.shape[dims - positions :].numel()
    return moved.reshape(n, groups, -1, length)


def unrolled(layer: Conv, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The two matrices in blocks of units: rows (U, G, D, T), columns (U, G, P, T)."""
    narrow, wide = sides(layer, a, g)
    dims, scans = len(layer.kernel_size), len(a) // n
    numbers = scans * wide.shape[1] * torch.Size(layer.kernel_size).numel() * narrow.shape[2:].numel()
    for run in blocks(n, numbers, a.device):
        rows = slice(run.start * scans, run.stop * scans)
        patches = patches_at(narrow[rows], wide[rows], layer)
        units = run.stop - run.start
        yield _matrix(narrow[rows], units, layer.groups, dims), _matrix(patches, units, layer.groups, dims)
