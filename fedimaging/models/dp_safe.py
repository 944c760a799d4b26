"""Make a network safe for per-patient gradients, and measure that it is.

Safe means: what the network computes for one scan does not depend on the other scans of the batch, nothing is
remembered from one batch to the next, and every parameter that asks for a gradient gets one.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from fedimaging.errors import PrivacyError, StudyError, unknown_name

NORMS = ("group", "instance", "layer", "none", "frozen")
INDEPENDENCE_TOLERANCE = 1e-6


class FixedNorm(nn.Module):
    """A pretrained BatchNorm with its running statistics held as constants; weight and bias may train.

    The constants are those of the public weights file: no patient of this federation is in them.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, source: _BatchNorm) -> None:
        super().__init__()
        if source.running_mean is None or source.running_var is None:
            raise StudyError("norm='frozen': a BatchNorm of this network keeps no running statistics; use 'group'.")
        self.register_buffer("mean", source.running_mean.detach().clone())
        self.register_buffer("inverse_std", (source.running_var.detach() + source.eps).rsqrt())
        self.weight = nn.Parameter(torch.ones(source.num_features))
        self.bias = nn.Parameter(torch.zeros(source.num_features))
        _copy_affine(source, self)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *spatial) -> the same shape."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale = self.weight * self.inverse_std
        return x * scale.view(shape) + (self.bias - self.mean * scale).view(shape)


NORM_LAYERS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _InstanceNorm, FixedNorm)


def make_dp_safe(model: nn.Module, *, norm: str = "group", probe: Tensor | None = None) -> nn.Module:
    """Change `model` in place (a BatchNorm as the whole model is returned replaced) and return it.

    - every BatchNorm and SyncBatchNorm, affine or not, training or frozen, becomes `norm` (see ModelSpec); its
      weight and bias are copied, names stay;
    - InstanceNorm keeps no running statistics; dropout is off (p = 0), so that a step is a function of its seed;
      activations work out of place (hooks and vmap need their inputs);
    - with `probe` (B, C, *spatial): parameters that get no gradient from it are frozen.
    Errors: StudyError for an unknown norm, `frozen` where there are no running statistics, or a layer that is
    registered in two places.
    """
    if norm not in NORMS:
        raise StudyError(unknown_name("model.norm", norm, NORMS))
    _require_one_place(model)
    model = _replace_batch_norms(model, norm)
    for module in model.modules():
        if isinstance(module, _InstanceNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, _DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    if probe is not None:
        freeze_unused(model, probe)
    return model


def freeze_unused(model: nn.Module, probe: Tensor) -> tuple[str, ...]:
    """Freeze the parameters that get no gradient from `model(probe)`; return their names. Gradients are left unset."""
    named = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
    gradients = torch.autograd.grad(model(probe).sum(), [tensor for _, tensor in named], allow_unused=True)
    unused = tuple(name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None)
    for name, tensor in named:
        tensor.requires_grad_(name not in unused)
    return unused


def cross_scan_influence(model: nn.Module, x_BCHW: Tensor, other_BCHW: Tensor) -> float:
    """How much scan 0's output depends on the rest of the batch: the largest change of `model(x)[0]`, relative to
    its size, when scans 1.. of `x` (B >= 2) are replaced by those of `other` (same shape). 0 for a safe network.

    Measured near the model's parameters, not at them: a last layer that starts at zero would hide everything. The
    mode (training or not) is the model's own.
    """
    swapped = torch.cat([x_BCHW[:1], other_BCHW[1:]])
    near = _shaken(model)
    with torch.no_grad():
        before, after = (functional_call(model, near, (x,))[0] for x in (x_BCHW, swapped))
    return float((before - after).abs().max() / before.abs().max().clamp_min(torch.finfo(before.dtype).tiny))


def require_independent_scans(model: nn.Module, x_BCHW: Tensor, other_BCHW: Tensor) -> None:
    """Error: PrivacyError if one scan's output depends on another scan of its batch (see cross_scan_influence)."""
    influence = cross_scan_influence(model, x_BCHW, other_BCHW)
    if not influence <= INDEPENDENCE_TOLERANCE:
        raise PrivacyError(
            f"in {type(model).__name__} the output of one scan changes by {influence:.2g} (relative) when another scan "
            "of its batch changes, so no gradient belongs to one patient; remove what mixes the batch, e.g. a custom "
            "batch normalisation."
        )


def _shaken(model: nn.Module) -> dict[str, Tensor]:
    """The parameters, each moved at random by a tenth of its typical size; zeros by 0.02."""
    generator = torch.Generator().manual_seed(0)
    shaken = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        size = 0.1 * float(value.square().mean().sqrt()) or 0.02
        shaken[name] = value + size * torch.randn(value.shape, generator=generator).to(value)
    return shaken


def _require_one_place(model: nn.Module) -> None:
    """torch.func.functional_call, with which gradients per patient are taken, swaps the tensors of a layer with two
    names twice and puts the wrong ones back (seen in torch 2.15)."""
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known = first.setdefault(id(module), name)
        if known != name and next(module.parameters(), None) is not None:
            raise StudyError(
                f"{type(model).__name__} registers one layer as {known!r} and as {name!r}; keep one of the two names "
                "(tying two layers' weights is allowed)."
            )


def _replace_batch_norms(module: nn.Module, norm: str) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return _replacement(module, norm)
    for name, child in module.named_children():
        setattr(module, name, _replace_batch_norms(child, norm))
    return module


def _replacement(source: _BatchNorm, norm: str) -> nn.Module:
    channels = source.num_features
    if norm == "none":
        return nn.Identity()
    if norm == "frozen":
        return FixedNorm(source)
    groups = {"group": _groups(channels), "instance": channels, "layer": 1}[norm]
    layer = nn.GroupNorm(groups, channels, eps=source.eps, affine=source.affine)
    _copy_affine(source, layer)
    return layer


def _groups(channels: int) -> int:
    """The largest divisor of `channels` that leaves at least 4 channels a group and makes at most 32 groups (Wu and
    He 2018): a group of one channel would erase a feature map that has shrunk to one pixel."""
    most = min(32, max(1, channels // 4))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


def _copy_affine(source: _BatchNorm, target: nn.Module) -> None:
    for name in ("weight", "bias"):
        given, copy = getattr(source, name), getattr(target, name)
        if copy is None:
            continue
        copy.requires_grad_(given is not None and given.requires_grad)
        if given is not None:
            with torch.no_grad():
                copy.copy_(given)
