"""The fastest engine for a model, a device and a shape of scan: measured once, then kept for the process."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import ClippedSum, Losses, UnitBatch, Unsupported, norm_type, unit_batch
from fedimaging.privacy.clipping.engines import ENGINES
from fedimaging.privacy.clipping.memory import structure

CANDIDATES = ("fused", "loop", "vmap", "opacus")
_AGREEMENT = 1e-3  # relative; float32 rounding stays a hundred times below, a wrong gradient far above
_WARM_UP_UNITS = 2
_RUNS = 2  # the faster one counts: whatever else runs on the machine only adds
_CUDA_RUNS = 4  # a size's first pass is an ordinary one, and its second is captured

_chosen: dict[tuple[object, ...], "EngineChoice"] = {}


@dataclass(frozen=True)
class EngineChoice:
    """The engine to use, the seconds each candidate took on the measured draw, and why others were left out.

    `name` is a plain engine name: put it into `DpPlan.engine` to make the choice once and the same for everyone.
    """

    name: str
    seconds: Mapping[str, float]
    left_out: Mapping[str, str]


def choose_engine(
    model: nn.Module,
    losses: Losses,
    x: Tensor,
    y: Tensor,
    unit_of_scan: Tensor,
    n_units: int,
    clip_norm: float,
    *,
    memory_mb: float | None = None,
    candidates: Sequence[str] = CANDIDATES,
) -> EngineChoice:
    """Time the candidates on these scans, real or synthetic (only shapes matter), and name the fastest.

    Each candidate warms up on a few units and must agree with `loop` there, to 1e-3 of the clip norm: one that cannot
    treat the model, or treats it wrongly, is left out with the reason. The timed run keeps to `memory_mb`. The name
    is the only thing that times decide; sums of different engines differ by rounding.
    """
    batch = unit_batch(x, y, unit_of_scan, n_units)
    filled = batch.counts.nonzero().flatten()
    if not len(filled):
        return EngineChoice("loop", {}, {})
    batch = batch.choose(filled)
    few = batch.units(0, _WARM_UP_UNITS)
    oracle = _run("loop", model, losses, few, clip_norm, memory_mb)
    seconds, left_out = {}, {}
    for name in candidates:
        try:
            tried = _run(name, model, losses, few, clip_norm, memory_mb)
        except (Unsupported, RuntimeError) as error:  # vmap and hooks fail with whatever the model made them meet
            left_out[name] = str(error).splitlines()[0]
            continue
        error_norm = _difference(tried.sum, oracle.sum)
        if not error_norm <= _AGREEMENT * clip_norm:
            left_out[name] = f"differs from loop by {error_norm / clip_norm:.1e} of the clip norm"
            continue
        runs = _CUDA_RUNS if batch.x.is_cuda else _RUNS
        seconds[name] = min(_timed(name, model, losses, batch, clip_norm, memory_mb) for _ in range(runs))
    return EngineChoice(min(seconds, key=seconds.__getitem__), seconds, left_out)


def sum_by_fastest(
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
    """The engine `auto`: the first draw of a new (model, device, shape of scan) is measured, later ones reuse it.

    Two processes may choose differently and then differ by rounding. Where bits must repeat, call `choose_engine`
    once and use its name.
    """
    key = (structure(model), x.device, x.dtype, x.shape[1:])
    if key not in _chosen and len(x):
        _chosen[key] = choose_engine(
            model, losses, x, y, unit_of_scan, n_units, clip_norm, memory_mb=memory_mb
        )
    name = _chosen[key].name if key in _chosen else "loop"
    return ENGINES[name](model, losses, x, y, unit_of_scan, n_units, clip_norm, memory_mb=memory_mb)


def _run(
    name: str, model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float, memory_mb: float | None
) -> ClippedSum:
    return ENGINES[name](
        model, losses, batch.x, batch.y, batch.unit_of_scan, len(batch), clip_norm, memory_mb=memory_mb
    )


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    norms = [torch.linalg.vector_norm((a - b).to(norm_type(a.device))) for a, b in zip(found, expected, strict=True)]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _timed(
    name: str, model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float, memory_mb: float | None
) -> float:
    start = time.perf_counter()
    _run(name, model, losses, batch, clip_norm, memory_mb)
    if batch.x.is_cuda:
        torch.cuda.synchronize(batch.x.device)
    return time.perf_counter() - start
