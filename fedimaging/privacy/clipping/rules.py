"""How a layer's unit gradients are found from its input and the gradient at its output, in general.

Legend: U units, K scans a unit, S = U K scans, T = K times the positions of a scan; a weight gradient of one unit is a
product of two matrices over T: rows (U, G, D, T) by columns (U, G, P, T), with G groups. Its norm needs either the
product itself (D P T operations) or the two Gram matrices (T T (D + P)); the cheaper is taken.

Sources: Goodfellow 2015; Rochette et al. 2019 (convolutions); Bu et al. 2023 (book-keeping, mixed by layer).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import norm_type

_BLOCK = 1 << 20  # numbers laid out at a time: stays near the cache and in memory that the allocator hands out again
_GPU_BLOCK = 1 << 28  # a GPU wants few large calls
_KEPT = 50  # multiplications that a number of the product is worth, beside its own, until it is summed
_KEPT_AS_IT_LIES = 25  # the same of a pointwise or a linear layer, for whose product nothing is laid out anew
_GRAM_CALLS = 6e6  # multiplications that would take as long as the calls for two Gram matrices and one more gradient
_FEW_WEIGHTS = 1 << 12  # their product is so small that Gram matrices never pay
_CANCELLED = 1e-2  # below this share of its terms' absolute sum, a float32 Gram norm is computed again in float64

UnitGradients = dict[str, Tensor]
"""A layer's own parameter name -> (O, U, R): kernel offsets O (or 1) first, as the products leave them; `shaped` turns
a sum over units (O, R) into the parameter's shape."""


@dataclass(frozen=True)
class Rule:
    """How one kind of layer is differentiated per unit. `a` (S, ...) its input, `g` (S, ...) the output's gradient.

    unit_gradients(layer, a, g, U, names) for the layer's own parameters of these names; or
    recorded(layer, x, *copies): takes forward's place while a pass is recorded, with the same output, from copies (S
    numel,) of each of the layer's parameters, one a scan, or None where it has none: autograd then gives each scan its gradient.
    With neither, the layer itself meets such copies (`layers.SPREAD`).
    run(layer, x): the same output and gradient at the input as forward, sooner; None: forward itself.
    product: for a layer whose weight's unit gradient is a product of two matrices.
    parts: whether it takes rows that are parts of scans, all of a scan one after the other: `a` and `g` (S, parts, ...) then.
    at(layer): the inner module whose input takes the output's place, in `g` too; None: the layer's own output.
    tried: whether it rests on more than the layer's own code, and so is tried against autograd before its first use.
    refuse(layer): why a layer of this kind cannot be treated after all, or None.
    """

    forward: Callable[..., Tensor]
    unit_gradients: Callable[..., UnitGradients] | None = None
    product: "Product | None" = None
    recorded: Callable[..., Tensor] | None = None
    run: Callable[[nn.Module, Tensor], Tensor] | None = None
    parts: bool = False
    at: Callable[[nn.Module], nn.Module] | None = None
    tried: bool = False
    refuse: Callable[[nn.Module], str | None] = lambda layer: None


@dataclass(frozen=True)
class Product:
    """A weight whose unit gradient is a product of two matrices over T.

    grams(layer, a, g, U): their Gram matrices (U, G, T, T), in blocks of units. gram_cost(layer, a, g, U): what those of a
    unit are worth in multiplications.
    weighted(layer, a, g): the weight's gradient summed over scans, for a `g` already scaled.
    """

    grams: Callable[[nn.Module, Tensor, Tensor, int], Iterator[tuple[Tensor, Tensor]]]
    gram_cost: Callable[[nn.Module, Tensor, Tensor, int], float]
    weighted: Callable[[nn.Module, Tensor, Tensor], Tensor]

    def prefers_gram(self, layer: nn.Module, a: Tensor, g: Tensor, n: int) -> bool:
        """Whether Gram matrices and one more weight gradient cost less than the product.

        The product, once formed, serves the sum too; it takes as many multiplications as the gradient, and what it costs
        more is the memory that it passes through. The constants were measured on a CPU; they change no result.
        """
        weight = cast(Tensor, layer.weight)
        if weight.numel() <= _FEW_WEIGHTS:
            return False
        kept = _KEPT_AS_IT_LIES if weight[0].numel() == weight.shape[1] else _KEPT
        return self.gram_cost(layer, a, g, n) + _GRAM_CALLS / n < kept * weight.numel()

    def squares(self, layer: nn.Module, a: Tensor, g: Tensor, n: int) -> Tensor:
        """(U,) squared norms, in `norm_type`, without forming the product.

        A sum of products of inner products can cancel where the product itself would not: units for which it does
        so beyond float32's means are computed again in float64.
        """
        value, cancelled = self.rough_squares(layer, a, g, n)
        if a.dtype != torch.float64 and bool(cancelled.any()):
            where = a.device if norm_type(a.device) == torch.float64 else torch.device("cpu")
            a, g = (part.unflatten(0, (n, -1))[cancelled].flatten(0, 1).to(where).double() for part in (a, g))
            value[cancelled] = self.squares(layer, a, g, int(cancelled.sum())).to(value)
        return value

    def rough_squares(self, layer: nn.Module, a: Tensor, g: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """`squares` (U,) without a second try, and (U,) bool: which of them cancelled too much to be trusted."""
        found, size = [], []
        for rows, columns in self.grams(layer, a, g, n):
            assert rows.shape == columns.shape  # else they would be broadcast
            terms = (rows * columns).flatten(1)
            found.append(terms.sum(1, dtype=norm_type(terms.device)))
            size.append(torch.linalg.vector_norm(terms, 1, dim=1))
        value = torch.cat(found).clamp_(min=0)
        return value, value < _CANCELLED * torch.cat(size)


def blocks(n_units: int, numbers_per_unit: int, device: torch.device) -> Iterator[slice]:
    """Runs of units whose unrolled matrices hold about as many numbers as the device likes."""
    size = max(1, (_BLOCK if device.type == "cpu" else _GPU_BLOCK) // max(1, numbers_per_unit))
    for first in range(0, n_units, size):
        yield slice(first, min(first + size, n_units))


def shaped(total: Tensor, parameter: Tensor) -> Tensor:
    """(O, R) -> the parameter's shape, contiguous: offsets lie last in a weight."""
    return total.mT.reshape(parameter.shape)
