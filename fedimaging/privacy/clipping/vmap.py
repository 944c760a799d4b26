"""`torch.func`: the gradient of one unit's loss, vectorised over units. Ragged units are padded and masked exactly."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedimaging.privacy.clipping.batch import (
    ClippedSum,
    Losses,
    UnitBatch,
    clip_factors,
    norm_type,
    norms_of,
    scan_losses,
    trainable,
)
from fedimaging.privacy.clipping.replay import sum_by_replay


def sum_by_vmap(model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float) -> ClippedSum:
    """The clipped sum from all units' gradients at once. Memory: one gradient and the padded activations per unit."""
    if batch.x.is_cuda:
        replayed = sum_by_replay(rough_sum, model, losses, batch, clip_norm)
        if replayed is not None:
            return replayed
    gradients = _unit_gradients(model, losses, batch)
    norms = norms_of(gradients)
    keep = torch.isfinite(norms)
    factors = torch.where(keep, clip_factors(norms, clip_norm), 0.0)
    total = [_weighted(part, factors.to(part), keep) for part in gradients]
    return ClippedSum(total, norms, clip_norm)


def rough_sum(
    model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float, real: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """See `replay.Pass`."""
    gradients = _unit_gradients(model, losses, batch)
    norms = norms_of(gradients)
    factors = clip_factors(norms, clip_norm) * real
    total = [(factors.to(part) @ part.reshape(len(part), -1)).view(part.shape[1:]) for part in gradients]
    return total, norms, torch.isfinite(norms).all()


def _unit_gradients(model: nn.Module, losses: Losses, batch: UnitBatch) -> list[Tensor]:
    """Each trainable parameter's gradients (U, *shape), in the model's order."""
    chosen = {id(parameter) for parameter in trainable(model)}
    everything = {name: parameter.detach() for name, parameter in model.named_parameters()}
    train = {name: everything[name] for name, parameter in model.named_parameters() if id(parameter) in chosen}
    fixed = {name: value for name, value in everything.items() if name not in train}

    def unit_loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        outputs = functional_call(model, {**parameters, **fixed}, (x,))
        values = scan_losses(losses, outputs, y)
        return (values * weights.to(values.dtype)).sum()

    found = vmap(grad(unit_loss), in_dims=(None, 0, 0, 0), randomness="different")(train, *_by_unit(batch))
    return [found[name] for name in train]


def _by_unit(batch: UnitBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Scans (U, K, ...), targets (U, K, ...), weights (U, K)."""
    if batch.even is not None:
        shape = (len(batch), batch.even)
        weights = torch.full(shape, 1.0 / batch.even, device=batch.x.device, dtype=norm_type(batch.x.device))
        return batch.x.unflatten(0, shape), batch.y.unflatten(0, shape), weights
    rows, weights = _padded(batch)
    return batch.x[rows], batch.y[rows], weights


def _padded(batch: UnitBatch) -> tuple[Tensor, Tensor]:
    """Rows (U, K) into the scans, and their weights (U, K). Padding repeats a unit's own first scan at weight 0, so
    it can bring in neither another unit nor a value that the unit did not have."""
    widest = int(batch.counts.max())
    starts = batch.counts.cumsum(0) - batch.counts
    place = torch.arange(widest).expand(len(batch), widest)
    real = place < batch.counts[:, None]
    rows = starts[:, None] + torch.where(real, place, 0)
    weights = torch.where(real, 1.0 / batch.counts[:, None].double(), 0.0)
    return rows.to(batch.x.device), weights.to(batch.x.device, norm_type(batch.x.device))


def _weighted(gradients: Tensor, factors: Tensor, keep: Tensor) -> Tensor:
    """Sum over units of factor times gradient; a unit that is left out counts as zero, whatever its numbers are."""
    flat = gradients.reshape(len(gradients), -1)
    if not bool(keep.all()):
        flat = torch.where(keep[:, None], flat, 0.0)
    return (factors @ flat).view(gradients.shape[1:])
