"""One backward pass per unit: correct by construction for every network, and the least memory of all engines."""

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import (
    ClippedSum,
    Losses,
    UnitBatch,
    clip_factors,
    norm_type,
    norms_of,
    scan_losses,
    trainable,
    zero_sum,
)


def sum_by_loop(model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float) -> ClippedSum:
    """The clipped sum, unit by unit. Memory: the activations of one unit and two gradients."""
    total = zero_sum(model)
    norms = torch.zeros(len(batch), dtype=norm_type(batch.x.device))
    for unit in range(len(batch)):
        one = batch.units(unit, unit + 1)
        gradient = _unit_gradient(model, losses, one)
        norm = norms_of([part[None] for part in gradient])[0]
        norms[unit] = norm
        if torch.isfinite(norm):
            factor = float(clip_factors(norm, clip_norm))
            torch._foreach_add_(total, gradient, alpha=factor)
    return ClippedSum(total, norms.to(batch.x.device), clip_norm)


def _unit_gradient(model: nn.Module, losses: Losses, one: UnitBatch) -> list[Tensor]:
    """Gradient of the mean loss over the unit's scans; zero for a parameter that the loss does not reach."""
    loss = scan_losses(losses, model(one.x), one.y).mean()
    parameters = trainable(model)
    gradient = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return list(gradient)
