"""Book-keeping: one forward and one backward pass for a whole draw, unit gradients layer by layer.

Inputs and output gradients of the layers are kept. A layer's unit norms come from its unit gradients, which are then
kept, or from Gram matrices, and then its clipped sum is one more weight gradient with re-weighted output gradients
(Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import (
    ClippedSum,
    Losses,
    Unsupported,
    UnitBatch,
    clip_factors,
    scan_losses,
    trainable,
    zero_sum,
)
from fedimaging.privacy.clipping.layers import gram_squares
from fedimaging.privacy.clipping.memory import structure
from fedimaging.privacy.clipping.tape import Use, recording

_proven: set[tuple[object, ...]] = set()


def sum_by_bookkeeping(model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float) -> ClippedSum:
    """The clipped sum from one forward and one backward pass. Memory: about thrice a plain step's activations.

    Raises Unsupported for a model with a trainable parameter outside the layers of `layers.RULES`, or used in a way
    that cannot be followed; this is checked against autograd's own graph at every step.
    """
    _prove_rows_are_scans(model, losses, batch)
    order = torch.argsort(batch.counts, stable=True)
    ordered = batch.choose(order)
    books = _read(model, losses, ordered)
    norms = books.squares.sqrt()
    keep = torch.isfinite(norms)
    if bool(keep.all()):
        total = books.weighted_sum(model, clip_factors(norms, clip_norm))
    else:
        kept = ordered.choose(keep.cpu().nonzero().flatten())
        total = sum_by_bookkeeping(model, losses, kept, clip_norm).sum if len(kept.x) else zero_sum(model)
    found = torch.empty_like(norms)
    found[order.to(norms.device)] = norms
    return ClippedSum(total, found, clip_norm)


@dataclass
class _Books:
    """`squares` (U,) squared norms; `kept` unit gradients by parameter; `later` weights whose sum is still to do."""

    batch: UnitBatch
    squares: Tensor
    kept: dict[nn.Parameter, Tensor]
    later: list[tuple[Use, Tensor]]

    def enter(self, use: Use, g: Tensor, alone: bool) -> None:
        """Take in one use of a layer. A parameter used once may have its sum left for later; others are added up."""
        names = {name for name, _ in use.parameters()}
        product = use.rule.product
        scans = len(self.batch.x) / len(self.batch)
        if alone and "weight" in names and product and product.prefers_gram(use.layer, use.a, g, scans):
            pieces = [gram_squares(product.factors(use.layer, *part)) for part in self._parts(use.a, g)]
            self.squares += torch.cat(pieces)
            self.later.append((use, g))
            names.remove("weight")
        if not names:
            return
        found = [use.rule.unit_gradients(use.layer, *part, names) for part in self._parts(use.a, g)]
        for name, parameter in use.parameters():
            if name in names:
                gradient = torch.cat([part[name] for part in found]) if len(found) > 1 else found[0][name]
                self.kept[parameter] = self.kept[parameter] + gradient if parameter in self.kept else gradient

    def _parts(self, a: Tensor, g: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The rows of the units with one scan, with two scans ..., and how many units they are."""
        first = 0
        for scans, units in zip(*(c.tolist() for c in torch.unique(self.batch.counts, return_counts=True)), strict=True):
            last = first + scans * units
            yield a[first:last], g[first:last], units
            first = last

    def weighted_sum(self, model: nn.Module, factors: Tensor) -> list[Tensor]:
        """Sum over units of factor times gradient, in the model's order."""
        total: dict[nn.Parameter, Tensor] = {}
        for parameter, unit_gradients in self.kept.items():
            flat = unit_gradients.flatten(1)
            total[parameter] = (factors.to(flat) @ flat).view(parameter.shape)
        by_scan = torch.repeat_interleave(factors, self.batch.counts.to(factors.device))
        for use, g in self.later:
            scaled = g * by_scan.to(g).view(-1, *[1] * (g.dim() - 1))
            total[use.layer.weight] = use.rule.product.weighted(use.layer, use.a, scaled).contiguous()
        return [total[p] if p in total else torch.zeros_like(p) for p in trainable(model)]


def _read(model: nn.Module, losses: Losses, batch: UnitBatch) -> _Books:
    """One forward, one backward pass, and every layer's entry. `batch` is sorted by scans per unit."""
    with recording(model, len(batch.x)) as tape:
        total = (scan_losses(losses, model(batch.x), batch.y) * batch.weights).sum()
    reached = tape.gradients(total)
    squares = torch.zeros(len(batch), dtype=torch.float64, device=batch.x.device)
    books = _Books(batch, squares, {}, [])
    calls = Counter(parameter for use, _ in reached for _, parameter in use.parameters())
    while reached:
        use, g = reached.pop()  # each output gradient is let go as soon as its layer is entered
        books.enter(use, g, alone=all(calls[parameter] == 1 for _, parameter in use.parameters()))
    for unit_gradients in books.kept.values():
        books.squares += torch.linalg.vector_norm(unit_gradients.flatten(1), dim=1).double().square()
    return books


def _prove_rows_are_scans(model: nn.Module, losses: Losses, batch: UnitBatch) -> None:
    """The loss of one scan must reach only that scan's rows of every layer; once per model and shape.

    This catches a network that puts another axis first, and one that mixes scans. Raises Unsupported.
    """
    key = (structure(model), batch.x.shape[1:], batch.x.dtype, batch.x.device)
    if key in _proven:
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *batch.x.shape[1:], generator=generator, dtype=batch.x.dtype).to(batch.x.device)
    y = torch.stack([batch.y[0], batch.y[0]])
    with recording(model, 2) as tape:
        first = scan_losses(losses, model(x), y)[0]
    if any(bool(g[1].any()) for _, g in tape.gradients(first)):
        raise Unsupported("the rows inside the model are not single scans; take engine 'loop'.")
    _proven.add(key)
