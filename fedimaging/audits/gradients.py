"""Each unit's own gradient, for an attacker who compares it with what a hospital sent. Nothing here leaves an audit."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedimaging.privacy.clipping import Losses

_NUMBERS = 1 << 24  # of gradients held at once


def unit_runs(counts: np.ndarray, parameters: int) -> Iterator[slice]:
    """Runs of units whose scans' gradients fit into memory together; `counts` (U,) scans of each unit."""
    limit = max(1, _NUMBERS // max(1, parameters))
    first, held = 0, 0
    for unit, count in enumerate(counts.tolist()):
        if unit > first and held + count > limit:
            yield slice(first, unit)
            first, held = unit, 0
        held += count
    if first < len(counts):
        yield slice(first, len(counts))


def unit_gradients(model: nn.Module, losses: Losses, x: Tensor, y: Tensor, counts: np.ndarray) -> Tensor:
    """(U, V): the gradient of the mean loss of each unit's scans over all trainable parameters, laid end to end.

    x (S, C, *spatial), y (S, ...): scans unit after unit, `counts` (U,) of them each. Not clipped.
    """
    train = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}

    def loss(parameters: dict[str, Tensor], one_x: Tensor, one_y: Tensor) -> Tensor:
        return losses(functional_call(model, {**parameters, **fixed}, (one_x[None],)), one_y[None])[0]

    found = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(train, x, y)
    scans = torch.cat([found[name].reshape(len(x), -1) for name in train], 1)
    of = torch.repeat_interleave(torch.arange(len(counts)), torch.from_numpy(counts)).to(scans.device)
    total = torch.zeros(len(counts), scans.shape[1], dtype=scans.dtype, device=scans.device).index_add_(0, of, scans)
    return total / torch.from_numpy(counts).to(scans)[:, None]


def clipped_rows(gradients: Tensor, clip_norm: float) -> Tensor:
    """(U, V) with each row scaled to at most this norm; infinity leaves them."""
    norms = gradients.norm(dim=1, keepdim=True)
    return gradients * (clip_norm / norms.clamp(min=1e-30)).clamp(max=1.0)
