"""Book-keeping: one forward and one backward pass for a whole draw, unit gradients layer by layer.

Inputs and output gradients of the layers are kept. A layer's unit norms come from its unit gradients, which are then
kept, or from Gram matrices, and then its clipped sum is one more weight gradient with re-weighted output gradients
(Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import (
    ClippedSum,
    Losses,
    UnitBatch,
    Unsupported,
    clip_factors,
    scan_losses,
    squared_norms,
    trainable,
    two_scans,
    zero_sum,
)
from fedimaging.privacy.clipping.memory import ProofKey, proof_key
from fedimaging.privacy.clipping.rules import Product, shaped
from fedimaging.privacy.clipping.tape import Use, recording

_proven: set[ProofKey] = set()


def sum_by_bookkeeping(model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float) -> ClippedSum:
    """The clipped sum from one forward and one backward pass. Memory: about thrice a plain step's activations.

    Raises Unsupported for a model with a trainable parameter outside the layers of `layers.RULES`, or used in a way
    that cannot be followed; this is checked against autograd's own graph at every step.
    """
    _prove_rows_are_scans(model, losses, batch)
    order = torch.argsort(batch.counts, stable=True)
    ordered = batch.choose(order)
    books = _read(model, losses, ordered)
    norms = books.close()
    keep = torch.isfinite(norms)
    if bool(keep.all()):
        total = books.weighted_sum(model, clip_factors(norms, clip_norm))
    else:
        kept = ordered.choose(keep.cpu().nonzero().flatten())
        total = sum_by_bookkeeping(model, losses, kept, clip_norm).sum if len(kept.x) else zero_sum(model)
    found = torch.empty_like(norms)
    found[order.to(norms.device)] = norms
    return ClippedSum(total, found, clip_norm)


@dataclass(frozen=True)
class _Group:
    """Consecutive units with equally many scans."""

    units: slice
    scans: slice

    def __len__(self) -> int:
        return int(self.units.stop - self.units.start)


class _Books:
    """What is known of each unit after one pass: `squares` (U,), its squared norm so far, and what sums need.

    `kept`: unit gradients (O, U, R) by parameter, one tensor a group. `later`: uses whose weight is summed at the end.
    """

    def __init__(self, batch: UnitBatch) -> None:
        self.counts = batch.counts
        self.squares = torch.zeros(len(batch), dtype=torch.float64, device=batch.x.device)
        self.groups = list(_groups(batch.counts))
        self.kept: dict[nn.Parameter, list[Tensor]] = {}
        self.later: list[tuple[Use, Product, Tensor]] = []

    @torch.no_grad()
    def enter(self, use: Use, g: Tensor, alone: bool) -> None:
        """Take in one use of a layer. The sum of a parameter used once may be left for later; others are added up."""
        names = set(use.parameters)
        product, a = use.rule.product, use.a
        if alone and "weight" in names and product and product.prefers_gram(use.layer, a, g, len(self.counts)):
            for group in self.groups:
                squares = product.squares(use.layer, a[group.scans], g[group.scans], len(group))
                self.squares[group.units] += squares
            self.later.append((use, product, g))
            names.remove("weight")
        if not names:
            return
        found = []
        for group in self.groups:
            statistics = [part[group.scans] for part in use.statistics]
            part = (a[group.scans], g[group.scans], len(group))
            found.append(use.rule.unit_gradients(use.layer, *part, names, *statistics))
        for name, parameter in use.parameters.items():
            if name in names:
                self._keep(parameter, [gradients[name] for gradients in found], alone)

    def _keep(self, parameter: nn.Parameter, gradients: list[Tensor], alone: bool) -> None:
        if not alone:  # another use may have another layout: bring all to one
            gradients = [part.permute(1, 2, 0).reshape(1, part.shape[1], -1) for part in gradients]
        for old, new in zip(self.kept.get(parameter, []), gradients, strict=False):
            new += old
        self.kept[parameter] = gradients

    def close(self) -> Tensor:
        """(U,) norms, once every use is in."""
        for parts in self.kept.values():
            for group, part in zip(self.groups, parts, strict=True):
                self.squares[group.units] += squared_norms(part).sum(0)
        return self.squares.sqrt()

    @torch.no_grad()
    def weighted_sum(self, model: nn.Module, factors: Tensor) -> list[Tensor]:
        """Sum over units of factor times gradient, in the model's order."""
        total: dict[nn.Parameter, Tensor] = {}
        for parameter, parts in self.kept.items():
            weights = factors.to(parameter)
            pieces = [weights[group.units] @ part for group, part in zip(self.groups, parts, strict=True)]
            total[parameter] = shaped(sum(pieces[1:], pieces[0]), parameter)
        by_scan = torch.repeat_interleave(factors, self.counts.to(factors.device))
        for use, product, g in self.later:
            scaled = g * by_scan.to(g).view(-1, *[1] * (g.dim() - 1))
            total[cast(nn.Parameter, use.layer.weight)] = product.weighted(use.layer, use.a, scaled).contiguous()
        return [total[p] if p in total else torch.zeros_like(p) for p in trainable(model)]


def _groups(counts: Tensor) -> Iterator[_Group]:
    unit = scan = 0
    for scans, units in zip(*(part.tolist() for part in torch.unique(counts, return_counts=True)), strict=True):
        yield _Group(slice(unit, unit + units), slice(scan, scan + scans * units))
        unit, scan = unit + units, scan + scans * units


def _read(model: nn.Module, losses: Losses, batch: UnitBatch) -> _Books:
    """One forward, one backward pass, and every layer's entry. `batch` is sorted by scans per unit."""
    with recording(model, len(batch.x)) as tape:
        total = (scan_losses(losses, model(batch.x), batch.y) * batch.weights).sum()
    reached = tape.gradients(total)
    calls = Counter(parameter for use, _ in reached for parameter in use.parameters.values())
    books = _Books(batch)
    while reached:
        use, g = reached.pop()  # each output gradient is let go as soon as its layer is entered
        books.enter(use, g, alone=all(calls[parameter] == 1 for parameter in use.parameters.values()))
    return books


def _prove_rows_are_scans(model: nn.Module, losses: Losses, batch: UnitBatch) -> None:
    """The loss of one scan must reach only that scan's rows of every layer; once per model, loss and shape.

    This catches a network that puts another axis first, and one that mixes scans. Raises Unsupported.
    """
    key = proof_key(model, losses, batch)
    if key in _proven:
        return
    x, y = two_scans(batch)
    with recording(model, 2) as tape:
        first = scan_losses(losses, model(x), y)[0]
    if any(bool(g[1].any()) for _, g in tape.gradients(first)):
        raise Unsupported("the rows inside the model are not single scans; take engine 'loop'.")
    _proven.add(key)
