"""The Gram matrices of a convolution's two sides, which tell the norm of its unit gradients without forming these.

Two patches' inner product is the sum, over kernel offsets, of the inner products of the two pixels there. So the patches'
Gram matrix follows from the pixels' own, summed along its diagonals by one dimension of the kernel after another, and
nothing is unrolled. Legend as in `rules` and `patches`.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.patches import Conv, is_plain, meetings, sides, unrolled
from fedimaging.privacy.clipping.rules import blocks

# What one number costs, in multiplications within a product of matrices, as measured on a CPU:
_ALONG_DIAGONALS = 130  # of the pixels' matrix, laid out anew and summed along its diagonals
_AS_IT_IS = 20  # of a matrix that is only multiplied by the other
_UNROLLED = 100  # of the patches


def gram_cost(layer: nn.Module, a: Tensor, g: Tensor, n: int) -> float:
    """Multiplications that a unit's Gram matrices are worth."""
    return min(_costs(cast(Conv, layer), a, g, n))


def _costs(layer: Conv, a: Tensor, g: Tensor, n: int) -> tuple[float, float]:
    """From the pixels' matrix, and from patches."""
    narrow, wide = sides(layer, a, g)
    channels, kernel = wide.shape[1], torch.Size(layer.kernel_size).numel()
    few, many = (len(a) / n * side.shape[2:].numel() for side in (narrow, wide))
    rows = few**2 * narrow.shape[1]
    each = _AS_IT_IS if is_plain(layer) else _ALONG_DIAGONALS
    pixels = rows + many**2 * (channels + each * layer.groups)
    patches = rows + few**2 * (channels * kernel + _AS_IT_IS * layer.groups) + _UNROLLED * channels * kernel * few
    return pixels, patches


def conv_grams(layer: nn.Module, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """See `rules.Product.grams`."""
    layer = cast(Conv, layer)
    pixels, patches = _costs(layer, a, g, n)
    if patches < pixels:
        for rows, columns in unrolled(layer, a, g, n):
            yield rows.mT @ rows, columns.mT @ columns
        return
    narrow, wide = sides(layer, a, g)
    scans, groups = len(a) // n, layer.groups
    largest = scans * max(side.shape[2:].numel() for side in (narrow, wide))
    for run in blocks(n, groups * largest**2, a.device):
        part = slice(run.start * scans, run.stop * scans)
        rows, columns = (_own_gram(side[part], run.stop - run.start, groups) for side in (narrow, wide))
        if not is_plain(layer):
            columns = _along_diagonals(layer, columns, [scans, *narrow.shape[2:]], [scans, *wide.shape[2:]])
        yield rows.unflatten(0, (-1, groups)), columns.unflatten(0, (-1, groups))


def _own_gram(side: Tensor, n: int, groups: int) -> Tensor:
    """(S, C, *spatial) -> (U G, T, T): inner products of every two pixels of a unit, over the channels of a group."""
    pixels = side.unflatten(0, (n, -1)).transpose(1, 2)
    pixels = pixels.reshape(n * groups, pixels.shape[1] // groups, -1)
    return pixels.mT @ pixels


def _along_diagonals(layer: Conv, gram: Tensor, narrow: list[int], wide: list[int]) -> Tensor:
    """(N, T, T) of the wide side's pixels -> (N, t, t) of the patches at the narrow side's places. Sizes: scans, *spatial.

    The matrices lie innermost, so that even a few pixels make long runs.
    """
    count, dims = len(gram), len(wide)
    gram = gram.reshape(count, -1).t().contiguous().view(*wide, *wide, count)
    for dim in range(1, dims):
        found = gram.new_zeros(*narrow[: dim + 1], *wide[dim + 1 :], *narrow[: dim + 1], *wide[dim + 1 :], count)
        for _, places, pixels in meetings(layer, dim - 1, narrow[dim], wide[dim]):
            found[_both(places, dim, dims)] += gram[_both(pixels, dim, dims)]
        gram = found
    size = math.prod(narrow)
    return gram.view(-1, count).t().contiguous().view(count, size, size)


def _both(chosen: slice, dim: int, dims: int) -> tuple[slice, ...]:
    """The same choice from dimension `dim` of rows and of columns."""
    return (slice(None),) * dim + (chosen,) + (slice(None),) * (dims - 1) + (chosen,)
