"""Clipped gradient sums: the one place where private gradients are bounded.

Every engine gives the same sum as one-by-one autograd (`loop`, the oracle); they differ in time and memory only.
Scans of a unit are seen together: the unit's gradient is the gradient of the mean of its scans' losses, and that one
vector is clipped. So a patient with many scans moves the sum by at most C, like any other.
"""

from torch import Tensor, nn

from fedimaging.errors import PrivacyError, bad_value, unknown_name
from fedimaging.privacy.clipping.auto import EngineChoice, choose_engine, sum_by_fastest
from fedimaging.privacy.clipping.batch import ClippedSum, Engine, Losses, Unsupported
from fedimaging.privacy.clipping.engines import ENGINES as _FIXED_ENGINES

ENGINES: dict[str, Engine] = {**_FIXED_ENGINES, "auto": sum_by_fastest}
"""Every engine by the name that a study uses."""

__all__ = ["ENGINES", "ClippedSum", "Engine", "EngineChoice", "Losses", "Unsupported", "choose_engine", "clipped_sum"]


def clipped_sum(
    model: nn.Module,
    losses: Losses,
    x: Tensor,
    y: Tensor,
    unit_of_scan: Tensor,
    n_units: int,
    clip_norm: float,
    *,
    engine: str = "loop",
    memory_mb: float | None = None,
) -> ClippedSum:
    """Sum of unit gradients, each scaled to L2 norm at most `clip_norm` over all trainable parameters together.

    x (S, C, *spatial) and y (S, ...): the scans of all drawn units, one row a scan. unit_of_scan (S,) int64: sorted,
    in 0..n_units-1. losses(outputs, y) -> (S,). n_units may be 0 and a unit may have no scan: both add zero.
    memory_mb bounds an engine's working memory: a larger draw is cut at unit boundaries, which changes the sum by
    rounding only. A unit whose gradient is not finite adds zero. `model`, its gradients and its buffers are left as
    they were.

    Guarantees: see `ClippedSum`. They need a model whose output for one scan does not depend on another scan, which
    `models.dp_safe` provides, and, for `fused` and `opacus`, in which the order of rows does not depend on the scans' values;
    these two engines prove it, where scans of random numbers can show it (`proof.py`). Raises PrivacyError for rows that do
    not fit together, losses that are not one per scan, an unknown engine, and (`Unsupported`) a model that the chosen engine
    cannot treat exactly.
    """
    if engine not in ENGINES:
        raise PrivacyError(unknown_name("privacy.engine", engine, ENGINES))
    if not clip_norm > 0:
        raise PrivacyError(bad_value("clip_norm", clip_norm, "must be above 0"))
    return ENGINES[engine](model, losses, x, y, unit_of_scan, n_units, clip_norm, memory_mb=memory_mb)
