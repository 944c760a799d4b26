"""A pass over a draw as one CUDA graph: hundreds of small kernels start at once instead of one by one from Python.

A graph has fixed sizes, and a draw has not: draws are filled up to a few sizes with copies of their first unit, which count
zero. A draw whose units differ in their number of scans, or whose sum does not hold, is left to the ordinary pass.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedimaging.privacy.clipping.batch import ClippedSum, Losses, UnitBatch
from fedimaging.privacy.clipping.memory import proof_key

Pass = Callable[[nn.Module, Losses, UnitBatch, float, Tensor], tuple[list[Tensor], Tensor, Tensor]]
"""(model, losses, batch, clip_norm, real (U,)) -> (sum, norms (U,), () bool: the sum holds), never waiting for the device."""

_WARM_UPS = 3  # passes before a capture: libraries make their workspaces in the first ones
_KEPT = 8  # graphs of a model; more sizes than that are made anew


@dataclass
class _Graph:
    """A captured pass with the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: UnitBatch
    real: Tensor
    total: Tensor
    shapes: list[torch.Size]
    norms: Tensor
    holds: Tensor


@dataclass
class _Shelf:
    """A model's graphs by what they depend on; None: this could not be captured. `seen`: met once, not yet captured."""

    graphs: dict[Hashable, _Graph | None] = field(default_factory=dict)
    seen: set[Hashable] = field(default_factory=set)
    pool: Any = None  # PyTorch has no public name for its handle


_shelves: WeakKeyDictionary[nn.Module, _Shelf] = WeakKeyDictionary()


class HostWatch(TorchDispatchMode):
    """Notes whether anything computed on a device took a tensor from the host: a graph would read that place again at every
    replay, long after the tensor is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.host_was_read = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        kinds = {leaf.device.type for leaf in tree_leaves((args, kwargs or {}, found)) if isinstance(leaf, Tensor)}
        self.host_was_read |= len(kinds) > 1
        return found


def sum_by_replay(
    run: Pass, model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float
) -> ClippedSum | None:
    """The clipped sum by replaying `run`, captured when a size is met for the second time. None: take the ordinary pass."""
    if batch.even is None:
        return None
    units, shelf = _filled_up(len(batch)), _shelves.setdefault(model, _Shelf())
    places = tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))
    key = (run, proof_key(model, losses, batch), batch.even, units, clip_norm, model.training, places)
    if key not in shelf.graphs and key not in shelf.seen:
        shelf.seen.add(key)
        return None
    if key not in shelf.graphs:
        while len(shelf.graphs) >= _KEPT:
            shelf.graphs.pop(next(iter(shelf.graphs)))
        shelf.graphs[key] = _captured(run, model, losses, batch, clip_norm, units, shelf)
    graph = shelf.graphs[key]
    return None if graph is None else _replayed(graph, batch, clip_norm)


def _filled_up(units: int) -> int:
    """The next of four sizes between two powers of two."""
    step = 2 ** max(0, math.floor(math.log2(units)) - 2)
    return -(-units // step) * step


def _captured(
    run: Pass, model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float, units: int, shelf: _Shelf
) -> _Graph | None:
    even = batch.even or 1
    counts = torch.full((units,), even)
    still = UnitBatch(batch.x[:1].repeat(units * even, *[1] * (batch.x.dim() - 1)),
                      batch.y[:1].repeat(units * even, *[1] * (batch.y.dim() - 1)), counts)
    real = batch.x.new_ones(units, dtype=torch.float64)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), HostWatch() as watch:
        for _ in range(_WARM_UPS):
            run(model, losses, still, clip_norm, real)
    torch.cuda.current_stream().wait_stream(side)
    if watch.host_was_read:
        return None
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=shelf.pool):
            parts, norms, holds = run(model, losses, still, clip_norm, real)
            total = torch.cat([part.flatten() for part in parts])  # one copy takes it out, however many tensors there are
    except RuntimeError:  # a loss that waits for the device, say; the ordinary pass does not mind
        torch.cuda.synchronize()
        return None
    shelf.pool = graph.pool()
    return _Graph(graph, still, real, total, [part.shape for part in parts], norms, holds)


def _replayed(graph: _Graph, batch: UnitBatch, clip_norm: float) -> ClippedSum | None:
    count, scans = len(batch), len(batch.x)
    for still, given in ((graph.batch.x, batch.x), (graph.batch.y, batch.y)):
        still[:scans].copy_(given)
        still[scans:].copy_(given[:1].expand_as(still[scans:]))
    graph.real.zero_()
    graph.real[:count] = 1.0
    graph.graph.replay()
    if not bool(graph.holds):
        return None
    pieces = graph.total.clone().split([shape.numel() for shape in graph.shapes])
    total = [piece.view(shape) for piece, shape in zip(pieces, graph.shapes, strict=True)]
    return ClippedSum(total, graph.norms[:count].clone(), clip_norm)
