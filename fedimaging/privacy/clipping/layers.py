"""Unit gradients of single layers, from a layer's input and the gradient at its output.

Legend: U units, K scans a unit, S = U K scans, T = K times the positions of a scan; a weight gradient of one unit is a
product of two matrices over T: rows (U, G, D, T) by columns (U, G, P, T), with G groups. Its norm needs either the
product itself (D P T operations) or the two Gram matrices (T T (D + P)); the cheaper is taken.

Sources: Goodfellow 2015; Rochette et al. 2019 (convolutions); Bu et al. 2023 (book-keeping, mixed by layer).
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 1 << 20  # numbers laid out at a time: stays near the cache and in memory that the allocator hands out again
_GRAM_OVERHEAD = 1e7  # operations that would take as long as the calls for two Gram matrices and one more gradient
_CANCELLED = 1e-2  # below this share of its terms' absolute sum, a float32 Gram norm is computed again in float64

UnitGradients = dict[str, Tensor]
"""A layer's own parameter name -> (O, U, R): kernel offsets O (or 1) first, as the products leave them; `shaped` turns
a sum over units (O, R) into the parameter's shape."""


@dataclass(frozen=True)
class Rule:
    """How one kind of layer is differentiated per unit. `a` (S, ...) its input, `g` (S, ...) the output's gradient.

    unit_gradients(layer, a, g, U, names, *statistics) for the layer's own parameters of these names.
    statistics(output): what forward computed and backward will need, each (S, ...); most layers have none.
    product: for a layer whose weight's unit gradient is a product of two matrices.
    refuse(layer): why a layer of this kind cannot be treated after all, or None.
    """

    forward: Callable[..., Tensor]
    unit_gradients: Callable[..., UnitGradients]
    product: "Product | None" = None
    statistics: Callable[[Tensor], tuple[Tensor, ...]] = lambda output: ()
    refuse: Callable[[nn.Module], str | None] = lambda layer: None


@dataclass(frozen=True)
class Product:
    """A weight whose unit gradient is a product of two matrices over T.

    grams(layer, a, g, U): their Gram matrices (U, G, T, T), in blocks of units. gram_size(layer, a, g): T of a single
    scan, and the channels that a Gram matrix of the columns runs over.
    weighted(layer, a, g): the weight's gradient summed over scans, for a `g` already scaled.
    """

    grams: Callable[[nn.Module, Tensor, Tensor, int], Iterator[tuple[Tensor, Tensor]]]
    gram_size: Callable[[nn.Module, Tensor, Tensor], tuple[int, int]]
    weighted: Callable[[nn.Module, Tensor, Tensor], Tensor]

    def prefers_gram(self, layer: nn.Module, a: Tensor, g: Tensor, n: int) -> bool:
        """Whether Gram matrices and one more weight gradient cost less than the product.

        The product, once formed, serves the sum too; what it costs more is the lesser efficiency of small products
        and the memory that it passes through. The constants were measured on a CPU; they change no result.
        """
        weight = cast(Tensor, layer.weight)
        rows, columns = weight.shape[0] // cast(int, getattr(layer, "groups", 1)), weight[0].numel()
        size, channels = self.gram_size(layer, a, g)
        positions = len(a) / n * size
        return positions**2 * (rows + channels) + _GRAM_OVERHEAD / n < rows * columns * (0.3 * positions + 12)

    def squares(self, layer: nn.Module, a: Tensor, g: Tensor, n: int) -> Tensor:
        """(U,) squared norms, float64, without forming the product.

        A sum of products of inner products can cancel where the product itself would not: units for which it does
        so beyond float32's means are computed again in float64.
        """
        found, size = [], []
        for rows, columns in self.grams(layer, a, g, n):
            terms = (rows * columns).flatten(1)
            found.append(terms.sum(1, dtype=torch.float64))
            size.append(torch.linalg.vector_norm(terms, 1, dim=1))
        value = torch.cat(found).clamp_(min=0)
        cancelled = value < _CANCELLED * torch.cat(size)
        if a.dtype != torch.float64 and bool(cancelled.any()):
            a, g = (part.unflatten(0, (n, -1))[cancelled].flatten(0, 1).double() for part in (a, g))
            value[cancelled] = self.squares(layer, a, g, int(cancelled.sum()))
        return value


def blocks(n_units: int, numbers_per_unit: int) -> Iterator[slice]:
    """Runs of units whose unrolled matrices hold about `_BLOCK` numbers."""
    size = max(1, _BLOCK // max(1, numbers_per_unit))
    for first in range(0, n_units, size):
        yield slice(first, min(first + size, n_units))


def shaped(total: Tensor, parameter: Tensor) -> Tensor:
    """(O, R) -> the parameter's shape, contiguous: offsets lie last in a weight."""
    return total.mT.reshape(parameter.shape)


# Linear: one position per entry of the middle dimensions.


def _linear_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    g = g.reshape(n, -1, g.shape[-1])
    found = {}
    if "weight" in names:
        found["weight"] = (g.mT @ a.reshape(n, -1, a.shape[-1])).view(1, n, -1)
    if "bias" in names:
        found["bias"] = g.sum(1)[None]
    return found


def _linear_grams(layer: nn.Module, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows, columns = g.reshape(n, -1, g.shape[-1]), a.reshape(n, -1, a.shape[-1])
    yield rows @ rows.mT, columns @ columns.mT


def _linear_gram_size(layer: nn.Module, a: Tensor, g: Tensor) -> tuple[int, int]:
    return g.shape[1:-1].numel(), a.shape[-1]


def _linear_weighted(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    return g.flatten(0, -2).mT @ a.flatten(0, -2)


# Convolutions: columns are the patches under the kernel; transposed ones exchange input and output.

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def _padding(layer: _Conv) -> list[int]:
    if isinstance(layer.padding, str):
        span = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [total // 2 if layer.padding == "same" else 0 for total in span]
    return list(layer.padding)


def _refuse_conv(layer: nn.Module) -> str | None:
    layer = cast(_Conv, layer)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same" and any(span % 2 for span in spans):
        return "padding 'same' with an even kernel"
    return None if layer.padding_mode == "zeros" else f"padding mode {layer.padding_mode!r}"


def _patches(x: Tensor, layer: _Conv) -> Tensor:
    """(S, C, *spatial) -> (S, C, *kernel, *positions), a view of the padded x."""
    dims = len(layer.kernel_size)
    pads = [size for size in reversed(_padding(layer)) for _ in range(2)]
    view = F.pad(x, pads) if any(pads) else x
    for dim, (kernel, stride, step) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        view = view.unfold(dim, step * (kernel - 1) + 1, stride)[..., ::step]
    return view.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))


def _matrix(x: Tensor, n: int, groups: int, positions: int) -> Tensor:
    """(S, C, ..., *positions), the last `positions` dimensions -> (U, G, C ... / G, T)."""
    x = x.unflatten(0, (n, -1))
    dims = x.dim()
    moved = x.permute(0, *range(2, dims - positions), 1, *range(dims - positions, dims))
    length = x.shape[1] * x.shape[dims - positions :].numel()
    return moved.reshape(n, groups, -1, length)


def _unrolled(layer: _Conv, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The two matrices in blocks of units: rows (U, G, D, T), columns (U, G, P, T)."""
    narrow, wide = (a, g) if layer.transposed else (g, a)
    dims, scans = len(layer.kernel_size), len(a) // n
    positions = narrow.shape[2:]
    unrolled = scans * wide.shape[1] * torch.Size(layer.kernel_size).numel() * positions.numel()
    for run in blocks(n, unrolled):
        rows = slice(run.start * scans, run.stop * scans)
        patches = _patches(wide[rows], layer)
        for dim, size in enumerate(positions, start=2 + dims):
            patches = patches.narrow(dim, 0, size)  # an output padding leaves windows that no input reached
        units = run.stop - run.start
        yield _matrix(narrow[rows], units, layer.groups, dims), _matrix(patches, units, layer.groups, dims)


def _conv_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    layer = cast(_Conv, layer)
    found = {}
    if "weight" in names:
        found["weight"] = (_by_offset if _is_dense(layer) else _by_patches)(layer, a, g, n)
    if "bias" in names:
        found["bias"] = g.unflatten(0, (n, -1)).flatten(3).sum((1, 3))[None]
    return found


def _by_patches(layer: _Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    out = a.new_empty(n, layer.groups, layer.weight.shape[0] // layer.groups, layer.weight[0].numel())
    first = 0
    for rows, columns in _unrolled(layer, a, g, n):
        torch.matmul(rows, columns.mT, out=out[first : first + len(rows)])
        first += len(rows)
    return out.view(1, n, -1)


def _is_dense(layer: _Conv) -> bool:
    """At stride 1 a kernel offset is a shift of the flattened padded image, and nothing needs to be unrolled."""
    return max(layer.stride) == 1 < max(layer.kernel_size)


def _grid(layer: _Conv, wide: Tensor) -> list[int]:
    return [size + 2 * pad for size, pad in zip(wide.shape[2:], _padding(layer), strict=True)]


def _on_grids(layer: _Conv, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[slice, Tensor, Tensor, list[int]]]:
    """Blocks of units (of groups): rows (U G, D / G, length), columns (U G, C / G, all of the grid), and the shifts.

    The narrow side is laid out on the padded grid too, with zeros where it has no value; so a shift that runs over
    the end of a line, or into the next scan of the unit, meets zeros.
    """
    narrow, wide = (a, g) if layer.transposed else (g, a)
    grid, shifts, groups, scans = _grid(layer, wide), _shifts(layer, _grid(layer, wide)), layer.groups, len(a) // n
    length = scans * torch.Size(grid).numel() - shifts[-1]
    for run in blocks(n, length * (narrow.shape[1] + wide.shape[1])):
        rows = slice(run.start * scans, run.stop * scans)
        units = run.stop - run.start
        left = _on_grid(narrow[rows], units, grid, [0] * len(grid)).view(units * groups, -1, length + shifts[-1])
        right = _on_grid(wide[rows], units, grid, _padding(layer)).view(units * groups, -1, length + shifts[-1])
        yield slice(run.start * groups, run.stop * groups), left[..., :length], right, shifts


def _by_offset(layer: _Conv, a: Tensor, g: Tensor, n: int) -> Tensor:
    rows = layer.weight.shape[0] // layer.groups
    out = a.new_empty(torch.Size(layer.kernel_size).numel(), n * layer.groups, rows, layer.weight.shape[1])
    for run, left, right, shifts in _on_grids(layer, a, g, n):
        for shift, target in zip(shifts, out[:, run], strict=True):
            torch.bmm(left, right[..., shift : shift + left.shape[-1]].mT, out=target)
    return out.view(len(out), n, -1)


def _conv_grams(layer: nn.Module, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    layer = cast(_Conv, layer)
    if not _is_dense(layer):
        for rows, columns in _unrolled(layer, a, g, n):
            yield rows.mT @ rows, columns.mT @ columns
        return
    for _, left, right, shifts in _on_grids(layer, a, g, n):
        pixels, length = right.mT @ right, left.shape[-1]
        rows = left.mT @ left
        columns = torch.zeros_like(rows)
        for shift in shifts:
            columns += pixels[:, shift : shift + length, shift : shift + length]
        yield rows.unflatten(0, (-1, layer.groups)), columns.unflatten(0, (-1, layer.groups))


def _conv_gram_size(layer: nn.Module, a: Tensor, g: Tensor) -> tuple[int, int]:
    layer = cast(_Conv, layer)
    narrow, wide = (a, g) if layer.transposed else (g, a)
    kernel = torch.Size(layer.kernel_size).numel()
    if _is_dense(layer):
        return torch.Size(_grid(layer, wide)).numel(), wide.shape[1] // layer.groups + kernel
    return narrow.shape[2:].numel(), wide.shape[1] // layer.groups * kernel


def _shifts(layer: _Conv, grid: list[int]) -> list[int]:
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
    layer = cast(_Conv, layer)
    output_padding = list(layer.output_padding)
    backward = torch.ops.aten.convolution_backward
    found = backward(
        g, a, layer.weight, None, list(layer.stride), _padding(layer), list(layer.dilation), layer.transposed,
        output_padding, layer.groups, [False, True, False],
    )  # fmt: skip
    return cast(Tensor, found[1])


# Normalisations: the gradient of the scale is the output's gradient times the normalised input.


def _group_norm_statistics(output: Tensor) -> tuple[Tensor, ...]:
    """Mean and 1 / deviation (S, groups), where autograd's node shows them."""
    node = output.grad_fn
    names = ("_saved_result1", "_saved_result2")
    return tuple(getattr(node, name) for name in names) if all(hasattr(node, name) for name in names) else ()


def _scale_gradients(
    layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str], *statistics: Tensor
) -> UnitGradients:
    """One call for all scans: laid side by side as channels of a single scan, they keep their own sums."""
    scans, channels, length = a.shape[0], a.shape[1], a.shape[2:].numel()
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else channels
    sizes = (1, scans * channels, length, scans * groups)
    a, g = a.reshape(sizes[:3]), g.reshape(sizes[:3])
    if statistics:
        mean, rstd = (part.reshape(1, -1) for part in statistics)
    else:
        _, mean, rstd = torch.native_group_norm(a, None, None, *sizes, cast(nn.GroupNorm, layer).eps)
    backward = torch.ops.aten.native_group_norm_backward
    _, scale, shift = backward(g, a, mean, rstd, None, *sizes, [False, True, True])
    found = {"weight": scale, "bias": shift}
    return {name: value.view(1, n, -1, channels).sum(2) for name, value in found.items() if name in names}


def _layer_norm_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    layer = cast(nn.LayerNorm, layer)
    shape = layer.normalized_shape
    found = {}
    if "weight" in names:
        normal = F.layer_norm(a, shape, None, None, layer.eps)
        found["weight"] = normal.mul_(g).reshape(1, n, -1, torch.Size(shape).numel()).sum(2)
    if "bias" in names:
        found["bias"] = g.reshape(1, n, -1, torch.Size(shape).numel()).sum(2)
    return found


# PReLU: the slope sees the output's gradient times the negative part of the input.


def _prelu_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    layer = cast(nn.PReLU, layer)
    parts = []
    scans = len(a) // n
    for run in blocks(n, 4 * a[0].numel() * scans):
        rows = slice(run.start * scans, run.stop * scans)
        product = a[rows].clamp(max=0).mul_(g[rows])
        by_channel = product.view(len(product), layer.num_parameters, -1).sum(2)
        parts.append(by_channel.view(-1, scans, layer.num_parameters).sum(1))
    return {"weight": torch.cat(parts)[None]}


# Embedding: each entry of the table collects the gradients of its places.


def _embedding_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    layer = cast(nn.Embedding, layer)
    places = a.reshape(n, -1)
    if layer.padding_idx is not None:
        g = g.masked_fill((a == layer.padding_idx)[..., None], 0.0)
    table = g.new_zeros(n * layer.num_embeddings, layer.embedding_dim)
    offsets = torch.arange(n, device=a.device)[:, None] * layer.num_embeddings
    table.index_add_(0, (places + offsets).flatten(), g.reshape(-1, layer.embedding_dim))
    return {"weight": table.view(1, n, -1)}


def _refuse_embedding(layer: nn.Module) -> str | None:
    layer = cast(nn.Embedding, layer)
    if layer.scale_grad_by_freq:
        return "scale_grad_by_freq, which couples the scans of a batch"
    return "max_norm or sparse gradients" if layer.max_norm is not None or layer.sparse else None


def _conv(kind: type[nn.Module]) -> Rule:
    product = Product(_conv_grams, _conv_gram_size, _conv_weighted)
    return Rule(kind.forward, _conv_gradients, product, refuse=_refuse_conv)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(
        nn.Linear.forward, _linear_gradients, Product(_linear_grams, _linear_gram_size, _linear_weighted)
    ),
    **{
        kind: _conv(kind)
        for kind in (
            nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
        )
    },
    nn.GroupNorm: Rule(nn.GroupNorm.forward, _scale_gradients, None, _group_norm_statistics),
    **{
        kind: Rule(kind.forward, _scale_gradients)
        for kind in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    },
    nn.LayerNorm: Rule(nn.LayerNorm.forward, _layer_norm_gradients),
    nn.PReLU: Rule(nn.PReLU.forward, _prelu_gradients),
    nn.Embedding: Rule(nn.Embedding.forward, _embedding_gradients, refuse=_refuse_embedding),
}  # fmt: skip
"""Every kind of layer whose unit gradients are known in closed form; a subclass counts if it keeps `forward`."""


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule of a layer, or None for a kind or a use of it that is not known."""
    for kind, rule in RULES.items():
        if isinstance(layer, kind) and type(layer).forward is rule.forward and rule.refuse(layer) is None:
            return rule
    return None
