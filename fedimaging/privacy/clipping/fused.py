"""Book-keeping: one forward and one backward pass for a whole draw, unit gradients layer by layer.

Inputs and output gradients of the layers are kept. A layer's unit norms come from its unit gradients, which are then
kept, or from Gram matrices, and then its clipped sum is one more weight gradient with re-weighted output gradients
(Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost).
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import (
    ClippedSum,
    Losses,
    UnitBatch,
    clip_factors,
    norm_type,
    scan_losses,
    squared_norms,
    zero_sum,
)
from fedimaging.privacy.clipping.proof import prove_once, prove_rows_are_scans
from fedimaging.privacy.clipping.replay import sum_by_replay
from fedimaging.privacy.clipping.rules import Product, UnitGradients, shaped
from fedimaging.privacy.clipping.tape import Use, recording

_SMALL = 1 << 17  # numbers of a parameter's unit gradients; fewer are not worth calls of their own


def sum_by_bookkeeping(model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float) -> ClippedSum:
    """The clipped sum from one forward and one backward pass. Memory: up to thrice a plain step's activations on a GPU; on a
    CPU, where what a layer left is let go of as soon as it is entered, up to two fifths above a plain step's, and a unit gradient
    for each unit where layers see many positions, as a transformer's do.

    Raises Unsupported for a model with a trainable parameter outside the layers of `layers.RULES` that not all scans meet
    alike, or used in a way that cannot be followed; this is checked against autograd's own graph at every step.
    """
    prove_once("fused", partial(prove_rows_are_scans, summed=_unclipped_sum), model, losses, batch)
    if batch.x.is_cuda:
        replayed = sum_by_replay(rough_sum, model, losses, batch, clip_norm)
        if replayed is not None:
            return replayed
    if batch.even is None:
        order = torch.argsort(batch.counts, stable=True)
        sorted_ = _sum_of_sorted(model, losses, batch.choose(order), clip_norm)
        norms = torch.empty_like(sorted_.norms).index_copy_(0, order.to(sorted_.norms.device), sorted_.norms)
        return ClippedSum(sorted_.sum, norms, clip_norm)
    return _sum_of_sorted(model, losses, batch, clip_norm)


def _sum_of_sorted(model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float) -> ClippedSum:
    """As `sum_by_bookkeeping`, for a batch sorted by scans per unit."""
    books = _read(model, losses, batch)
    norms = books.close()
    keep = np.ones(1) if math.isfinite(norms.sum()) else np.isfinite(norms.cpu().numpy())
    if keep.all():
        return ClippedSum(books.weighted_sum(clip_factors(norms, clip_norm)), norms, clip_norm)
    del books
    kept = batch.choose(torch.from_numpy(np.flatnonzero(keep)))
    total = _sum_of_sorted(model, losses, kept, clip_norm).sum if len(kept.x) else zero_sum(model)
    return ClippedSum(total, norms, clip_norm)


def rough_sum(
    model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float, real: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The sum over the units that `real` (U,) marks with 1 and not 0, all units' norms, and () bool: whether every norm is
    finite and none was lost in cancellation, so that the sum holds. Nothing in here waits for the device to answer."""
    books = _read(model, losses, batch, rough=True)
    norms = books.close()
    total = books.weighted_sum(clip_factors(norms, clip_norm) * real)
    return total, norms, torch.isfinite(norms).all() & ~torch.cat([norms.isnan(), *books.cancelled]).any()


@dataclass(frozen=True)
class _Group:
    """Consecutive units with equally many scans."""

    units: slice
    scans: slice

    def __len__(self) -> int:
        return int(self.units.stop - self.units.start)


class _Books:
    """What is known of each unit after one pass: `squares` (U,), its squared norm so far, and what sums need.

    Unit gradients (O, U, R) by parameter, one tensor a group: `kept` of large parameters, `small` of small ones, laid side
    by side in `rows` (U, all of them) at the end, and `shared` of those used more than once, until they are complete.
    `later`: layers whose weight is summed at the end. rough: norms that cancelled are not found again but told of by
    `cancelled`, a bool for each unit and layer.
    """

    def __init__(self, parameters: list[nn.Parameter], batch: UnitBatch, rough: bool) -> None:
        self.parameters, self.batch, self.rough = parameters, batch, rough
        self.units = len(batch)
        self.cancelled: list[Tensor] = []
        self.squares = torch.zeros(self.units, dtype=norm_type(batch.x.device), device=batch.x.device)
        self.groups = list(_groups(batch))
        self.kept: dict[nn.Parameter, list[Tensor]] = {}
        self.small: dict[nn.Parameter, list[Tensor]] = {}
        self.shared: dict[nn.Parameter, list[Tensor]] = {}
        self.later: list[tuple[nn.Module, Product, Tensor, Tensor]] = []
        self.rows: list[Tensor] = []

    def enter(self, use: Use, g: Tensor, alone: bool) -> None:
        """Take in one use of a layer. The sum of a parameter used once may be left for later; others are added up."""
        names = set(use.parameters)
        product = use.rule.product if alone and "weight" in names else None
        if product is not None and product.prefers_gram(use.layer, use.a, g, self.units):
            for group, a_, g_ in self._pieces(use.a, g):
                self.squares[group.units].add_(self._gram_squares(product, use.layer, a_, g_, len(group)))
            self.later.append((use.layer, product, use.a.detach(), g))  # with its graph, books would keep themselves
            names.remove("weight")
        if not names:
            return
        found = [self._gradients(use, a_, g_, group, names) for group, a_, g_ in self._pieces(use.a, g)]
        for name, parameter in use.parameters.items():
            if name in names:
                self._keep(parameter, [gradients[name] for gradients in found], alone)

    def _pieces(self, a: Tensor, g: Tensor) -> Iterator[tuple[_Group, Tensor, Tensor]]:
        for group in self.groups:
            yield (group, a, g) if self.batch.even else (group, a[group.scans], g[group.scans])

    def _gradients(self, use: Use, a: Tensor, g: Tensor, group: _Group, names: Collection[str]) -> UnitGradients:
        return cast(Callable[..., UnitGradients], use.rule.unit_gradients)(use.layer, a, g, len(group), names)

    def enter_by_scan(self, parameter: nn.Parameter, by_scan: Tensor, alone: bool) -> None:
        """Take in a parameter's gradients of each scan, end to end (S numel,)."""
        by_scan = by_scan.reshape(-1, parameter.numel())
        if self.batch.even == 1:
            units = [by_scan[None]]
        else:
            units = [by_scan[group.scans].view(1, len(group), -1, parameter.numel()).sum(2) for group in self.groups]
        self._keep(parameter, units, alone)

    def _gram_squares(self, product: Product, layer: nn.Module, a: Tensor, g: Tensor, n: int) -> Tensor:
        if not self.rough:
            return product.squares(layer, a, g, n)
        found, cancelled = product.rough_squares(layer, a, g, n)
        self.cancelled.append(cancelled)
        return found

    def _keep(self, parameter: nn.Parameter, gradients: list[Tensor], alone: bool) -> None:
        if not alone:  # another use may have another layout: bring all to one
            gradients = [_in_order(part)[None] for part in gradients]
            for old, new in zip(self.shared.get(parameter, []), gradients, strict=False):
                new += old
            self.shared[parameter] = gradients
        elif parameter.numel() * self.units <= _SMALL:
            self.small[parameter] = gradients
        else:
            self._keep_large(parameter, gradients)

    def _keep_large(self, parameter: nn.Parameter, gradients: list[Tensor]) -> None:
        self.kept[parameter] = gradients
        for group, part in zip(self.groups, gradients, strict=True):
            self.squares[group.units].add_(squared_norms(part).sum(0))

    def close(self) -> Tensor:
        """(U,) norms, once every use is in."""
        for parameter, gradients in self.shared.items():
            self._keep_large(parameter, gradients)
        self.small = {parameter: self.small[parameter] for parameter in self.parameters if parameter in self.small}
        for index, group in enumerate(self.groups if self.small else []):
            self.rows.append(torch.cat([_in_order(parts[index]) for parts in self.small.values()], dim=1))
            self.squares[group.units].add_(squared_norms(self.rows[-1]))
        return self.squares.sqrt()

    @torch.no_grad()
    def weighted_sum(self, factors: Tensor) -> list[Tensor]:
        """Sum over units of factor times gradient, in the model's order."""
        total: dict[nn.Parameter, Tensor] = {}
        for parameter, parts in self.kept.items():
            total[parameter] = shaped(self._sum(factors, parts), parameter)
        if self.small:
            pieces = self._sum(factors, self.rows).split([parameter.numel() for parameter in self.small])
            for parameter, piece in zip(self.small, pieces, strict=True):
                total[parameter] = piece.view(parameter.shape)
        by_scan = self.batch.spread(factors) if self.later else factors
        for layer, product, a, g in self.later:
            scaled = g * by_scan.to(g).view(-1, *[1] * (g.dim() - 1))
            total[cast(nn.Parameter, layer.weight)] = product.weighted(layer, a, scaled).contiguous()
        return [total[p] if p in total else torch.zeros_like(p) for p in self.parameters]

    def _sum(self, factors: Tensor, parts: list[Tensor]) -> Tensor:
        """(..., U, R) of each group -> (..., R)."""
        weights = factors.to(parts[0])
        pieces = [weights[group.units] @ part for group, part in zip(self.groups, parts, strict=True)]
        return sum(pieces[1:], pieces[0])


def _in_order(gradients: Tensor) -> Tensor:
    """(O, U, R) -> (U, R O), each unit's numbers in the parameter's own order."""
    return gradients[0] if len(gradients) == 1 else gradients.permute(1, 2, 0).reshape(gradients.shape[1], -1)


def _groups(batch: UnitBatch) -> Iterator[_Group]:
    if batch.even is not None:
        yield _Group(slice(0, len(batch)), slice(0, len(batch.x)))
        return
    unit = scan = 0
    for scans, units in zip(*(part.tolist() for part in torch.unique(batch.counts, return_counts=True)), strict=True):
        yield _Group(slice(unit, unit + units), slice(scan, scan + scans * units))
        unit, scan = unit + units, scan + scans * units


def _read(model: nn.Module, losses: Losses, batch: UnitBatch, *, rough: bool = False) -> _Books:
    """One forward, one backward pass, and every layer's entry. `batch` is sorted by scans per unit."""
    with recording(model, len(batch.x)) as tape:
        values = scan_losses(losses, model(batch.x), batch.y)
        total = values.sum() if batch.even == 1 else (values * batch.weights_like(values)).sum()
    books = _Books(tape.parameters, batch, rough)
    tape.sweep(total, books)
    return books


def _unclipped_sum(model: nn.Module, losses: Losses, batch: UnitBatch) -> list[Tensor]:
    books = _read(model, losses, batch)
    books.close()
    return books.weighted_sum(batch.x.new_ones(len(batch)))
