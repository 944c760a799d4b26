"""The fixed engines by name: each a method for one piece of a draw, run piece by piece within the memory limit."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import (
    ClippedSum,
    Engine,
    Losses,
    UnitBatch,
    micro_batches,
    norm_type,
    unit_batch,
    zero_sum,
)
from fedimaging.privacy.clipping.fused import sum_by_bookkeeping
from fedimaging.privacy.clipping.loop import sum_by_loop
from fedimaging.privacy.clipping.memory import parameter_bytes, scan_bytes
from fedimaging.privacy.clipping.opacus import sum_by_opacus
from fedimaging.privacy.clipping.vmap import sum_by_vmap

Method = Callable[[nn.Module, Losses, UnitBatch, float], ClippedSum]
UnitBytes = Callable[[int, int, int, int], float]
"""(scans of the unit, most scans of any unit, bytes of a scan's activations, bytes of one gradient) -> bytes."""


def _engine(method: Method, unit_bytes: UnitBytes) -> Engine:
    """The whole draw by `method`, in pieces whose working memory stays within `memory_mb`."""

    def run(
        model: nn.Module,
        losses: Losses,
        x: Tensor,
        y: Tensor,
        unit_of_scan: Tensor,
        n_units: int,
        clip_norm: float,
        *,
        memory_mb: float | None = None,
    ) -> ClippedSum:
        batch = unit_batch(x, y, unit_of_scan, n_units)
        if not len(x):
            return ClippedSum(zero_sum(model), _zero_norms(n_units, x), clip_norm)
        filled = np.flatnonzero(batch.counts.numpy())
        if len(filled) < n_units:
            batch = UnitBatch(x, y, batch.counts[filled])  # a unit without a scan has no rows to leave out
        cuts = _cuts(model, losses, batch, unit_bytes, memory_mb)
        parts = [method(model, losses, batch.units(first, last), clip_norm) for first, last in cuts]
        for part in parts[1:]:
            torch._foreach_add_(parts[0].sum, part.sum)
        norms = torch.cat([part.norms for part in parts]) if len(parts) > 1 else parts[0].norms
        if len(filled) < n_units:
            norms = _zero_norms(n_units, x).index_copy_(0, torch.from_numpy(filled).to(x.device), norms)
        return ClippedSum(parts[0].sum, norms, clip_norm)

    return run


def _zero_norms(n_units: int, x: Tensor) -> Tensor:
    return torch.zeros(n_units, device=x.device, dtype=norm_type(x.device))


def _cuts(
    model: nn.Module, losses: Losses, batch: UnitBatch, unit_bytes: UnitBytes, memory_mb: float | None
) -> list[tuple[int, int]]:
    if memory_mb is None:
        return [(0, len(batch))]
    widest, gradient, scan = int(batch.counts.max()), parameter_bytes(model), scan_bytes(model, losses, batch)
    return list(micro_batches(batch, lambda count: unit_bytes(count, widest, scan, gradient), memory_mb * 2**20))


ENGINES: dict[str, Engine] = {
    "loop": _engine(sum_by_loop, lambda count, widest, scan, gradient: 0.0),
    "vmap": _engine(sum_by_vmap, lambda count, widest, scan, gradient: 2 * widest * scan + 2 * gradient),
    "opacus": _engine(sum_by_opacus, lambda count, widest, scan, gradient: count * (3 * scan + 2 * gradient)),
    "fused": _engine(sum_by_bookkeeping, lambda count, widest, scan, gradient: 3 * count * scan + gradient),
}
