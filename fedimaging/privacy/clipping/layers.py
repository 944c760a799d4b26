"""The layers whose unit gradients are known, each with its rule. Legend as in `rules`."""

from collections.abc import Collection, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedimaging.privacy.clipping.convolutions import CONVOLUTIONS
from fedimaging.privacy.clipping.rules import Product, Rule, UnitGradients, blocks

# Linear: one position per entry of the middle dimensions.


def _linear_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    g = g.reshape(n, -1, g.shape[-1])
    found = {}
    if "weight" in names:
        found["weight"] = (g.mT @ a.reshape(n, -1, a.shape[-1])).view(1, n, -1)
    if "bias" in names:
        found["bias"] = g.sum(1)[None]
    return found


def _linear_grams(layer: nn.Module, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows, columns = g.reshape(n, -1, g.shape[-1]), a.reshape(n, -1, a.shape[-1])
    yield rows @ rows.mT, columns @ columns.mT


def _linear_gram_size(layer: nn.Module, a: Tensor, g: Tensor) -> tuple[int, int]:
    return g.shape[1:-1].numel(), a.shape[-1]


def _linear_weighted(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    return g.flatten(0, -2).mT @ a.flatten(0, -2)


# Normalisations: the gradient of the scale is the output's gradient times the normalised input.


class _ScanwiseNorm(torch.autograd.Function):
    """Group normalisation whose one backward pass gives the input's gradient and every scan's own gradients of scale and shift:
    laid side by side as channels of a single scan, scans keep their own sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
        scans, channels, length = len(x), x.shape[1], x.shape[2:].numel()
        out, mean, rstd = torch.native_group_norm(x.contiguous(), weight, bias, scans, channels, length, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        gradient, *ctx.by_scan = _norm_backward(g, x, mean, rstd, weight, want_input=ctx.needs_input_grad[0])
        return gradient, None, None, None, None


def _norm_backward(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, *, want_input: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the input, and of scale and shift for each scan (S, C); mean, rstd (S, groups)."""
    scans, channels, length = len(x), x.shape[1], x.shape[2:].numel()
    scale = x.new_ones(scans * channels) if weight is None else weight.repeat(scans)
    sizes = (1, scans * channels, length, mean.numel())
    flat = (part.reshape(sizes[:3]) for part in (g, x))
    found = torch.ops.aten.native_group_norm_backward(
        *flat, mean.view(1, -1), rstd.view(1, -1), scale, *sizes, [want_input, True, True]
    )
    gradient = found[0].view(x.shape) if want_input else None
    return gradient, found[1].view(scans, channels), found[2].view(scans, channels)


def _recorded_norm(layer: nn.Module, x: Tensor) -> Tensor:
    layer = cast(nn.GroupNorm, layer)
    return cast(Tensor, _ScanwiseNorm.apply(x, layer.weight, layer.bias, _norm_groups(layer, x), layer.eps))


def _norm_groups(layer: nn.Module, x: Tensor) -> int:
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]


def _scale_gradients(
    layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str], *by_scan: Tensor
) -> UnitGradients:
    if not by_scan:  # nothing before this layer trains, so the backward pass ended here
        sizes = (len(a), a.shape[1], a.shape[2:].numel(), _norm_groups(layer, a))
        _, mean, rstd = torch.native_group_norm(a.contiguous(), None, None, *sizes, cast(nn.GroupNorm, layer).eps)
        _, *by_scan_ = _norm_backward(g, a, mean, rstd, None, want_input=False)
        by_scan = tuple(by_scan_)
    found = dict(zip(("weight", "bias"), by_scan, strict=True))
    return {name: value.view(1, n, -1, a.shape[1]).sum(2) for name, value in found.items() if name in names}


def _refuse_instance_norm(layer: nn.Module) -> str | None:
    return "running statistics" if layer.track_running_stats else None


def _layer_norm_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    layer = cast(nn.LayerNorm, layer)
    shape = layer.normalized_shape
    found = {}
    if "weight" in names:
        normal = F.layer_norm(a, shape, None, None, layer.eps)
        found["weight"] = normal.mul_(g).reshape(1, n, -1, torch.Size(shape).numel()).sum(2)
    if "bias" in names:
        found["bias"] = g.reshape(1, n, -1, torch.Size(shape).numel()).sum(2)
    return found


# PReLU: the slope sees the output's gradient times the negative part of the input.


def _prelu_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    layer = cast(nn.PReLU, layer)
    parts = []
    scans = len(a) // n
    for run in blocks(n, 4 * a[0].numel() * scans, a.device):
        rows = slice(run.start * scans, run.stop * scans)
        product = a[rows].clamp(max=0).mul_(g[rows])
        by_channel = product.view(len(product), layer.num_parameters, -1).sum(2)
        parts.append(by_channel.view(-1, scans, layer.num_parameters).sum(1))
    return {"weight": torch.cat(parts)[None]}


# Embedding: each entry of the table collects the gradients of its places.


def _embedding_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    layer = cast(nn.Embedding, layer)
    places = a.reshape(n, -1)
    if layer.padding_idx is not None:
        g = g.masked_fill((a == layer.padding_idx)[..., None], 0.0)
    table = g.new_zeros(n * layer.num_embeddings, layer.embedding_dim)
    offsets = torch.arange(n, device=a.device)[:, None] * layer.num_embeddings
    table.index_add_(0, (places + offsets).flatten(), g.reshape(-1, layer.embedding_dim))
    return {"weight": table.view(1, n, -1)}


def _refuse_embedding(layer: nn.Module) -> str | None:
    layer = cast(nn.Embedding, layer)
    if layer.scale_grad_by_freq:
        return "scale_grad_by_freq, which couples the scans of a batch"
    return "max_norm or sparse gradients" if layer.max_norm is not None or layer.sparse else None


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(
        nn.Linear.forward, _linear_gradients, Product(_linear_grams, _linear_gram_size, _linear_weighted)
    ),
    **CONVOLUTIONS,
    nn.GroupNorm: Rule(nn.GroupNorm.forward, _scale_gradients, recorded=_recorded_norm),
    **{
        kind: Rule(kind.forward, _scale_gradients, recorded=_recorded_norm, refuse=_refuse_instance_norm)
        for kind in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    },
    nn.LayerNorm: Rule(nn.LayerNorm.forward, _layer_norm_gradients),
    nn.PReLU: Rule(nn.PReLU.forward, _prelu_gradients),
    nn.Embedding: Rule(nn.Embedding.forward, _embedding_gradients, refuse=_refuse_embedding),
}  # fmt: skip
"""Every kind of layer whose unit gradients are known in closed form; a subclass counts if it keeps `forward`."""


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule of a layer, or None for a kind or a use of it that is not known."""
    for kind, rule in RULES.items():
        if isinstance(layer, kind) and type(layer).forward is rule.forward and rule.refuse(layer) is None:
            return rule
    return None
