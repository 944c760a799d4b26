"""Opacus' hooks: its gradients per scan, regrouped by unit before the clip.

Ghost clipping is not offered: its norms are per scan, and a patient's scans must be added before the norm is taken.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import (
    ClippedSum,
    Losses,
    UnitBatch,
    Unsupported,
    clip_factors,
    norms_of,
    scan_losses,
    trainable,
    zero_sum,
)
from fedimaging.privacy.clipping.proof import prove_once


def sum_by_opacus(model: nn.Module, losses: Losses, batch: UnitBatch, clip_norm: float) -> ClippedSum:
    """The clipped sum by Opacus' per-scan gradients. Memory: one gradient for each scan.

    Raises Unsupported where the hooks cannot follow the model (in-place changes, layers registered twice, parameters
    without a gradient), or where they give another number of rows than there are scans.
    """
    with _in_training(model):
        prove_once("opacus", _prove_hooks_fit, model, losses, batch)
        gradients = _unit_gradients(model, losses, batch)
    norms = norms_of(gradients)
    keep = torch.isfinite(norms)
    factors = clip_factors(norms, clip_norm)[keep]
    total = zero_sum(model)
    for out, part in zip(total, gradients, strict=True):
        out += (factors.to(part) @ part[keep].reshape(len(factors), out.numel())).view(out.shape)
    return ClippedSum(total, norms, clip_norm)


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Opacus' hooks see nothing of a model that an evaluation left in its own mode. The proof is made in the same mode as the
    gradients: a layer that mixes scans only while it trains is refused."""
    modes = [(layer, layer.training) for layer in model.modules()]
    model.train()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _unit_gradients(model: nn.Module, losses: Losses, batch: UnitBatch) -> list[Tensor]:
    """Each trainable parameter's gradients (U, *shape), in the model's order."""
    from opacus import GradSampleModule  # seconds to load, and not every study needs it

    unit_of_scan = batch.unit_of_scan.to(batch.x.device)
    before = [parameter.grad for parameter in trainable(model)]
    for parameter in trainable(model):
        parameter.grad = None  # the backward pass would add to it in place
    hooked = GradSampleModule(model, loss_reduction="sum", strict=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")  # the images need no gradient
            values = scan_losses(losses, hooked(batch.x), batch.y)
            (values * batch.weights_like(values)).sum().backward()
        return [_by_unit(parameter, unit_of_scan, len(batch)) for parameter in trainable(model)]
    except (RuntimeError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise Unsupported(f"engine 'opacus' cannot follow this model ({error}); take engine 'loop'.") from error
    finally:
        hooked.to_standard_module()
        for layer in model.modules():  # a pass that failed half-way leaves its activations behind
            layer.__dict__.pop("activations", None)
        for parameter, gradient in zip(trainable(model), before, strict=True):
            parameter.grad = gradient


def _prove_hooks_fit(model: nn.Module, losses: Losses, x: Tensor, y: Tensor) -> None:
    """Hang the hooks on this copy first: where Opacus refuses half-way, it leaves hooks behind that nobody can take off."""
    from opacus import GradSampleModule

    try:
        GradSampleModule(model, loss_reduction="sum", strict=False)
    except (NotImplementedError, ValueError) as error:
        raise Unsupported(f"engine 'opacus' refuses this model ({error}); take engine 'loop'.") from error


def _by_unit(parameter: nn.Parameter, unit_of_scan: Tensor, n_units: int) -> Tensor:
    by_scan: Tensor = getattr(parameter, "grad_sample")  # set by the hooks  # noqa: B009
    if len(by_scan) != len(unit_of_scan):
        raise Unsupported("engine 'opacus' found rows that are not scans; take engine 'loop'.")
    return by_scan.new_zeros(n_units, *parameter.shape).index_add_(0, unit_of_scan, by_scan)
