"""The layers whose unit gradients are known, each with its rule. Legend as in `rules`."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedimaging.privacy.clipping.attention import window_attention_rule
from fedimaging.privacy.clipping.convolutions import CONVOLUTIONS
from fedimaging.privacy.clipping.rules import Product, Rule, UnitGradients

# Linear: one position per entry of the middle dimensions.


def _linear_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    g, a = g.reshape(n, -1, g.shape[-1]), a.reshape(n, -1, a.shape[-1])
    found = {}
    if "weight" in names:
        found["weight"] = (g.mT @ a if g.shape[1] > 1 else g.mT * a).view(1, n, -1)
    if "bias" in names:
        found["bias"] = g.sum(1)[None]
    return found


def _linear_grams(layer: nn.Module, a: Tensor, g: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows, columns = g.reshape(n, -1, g.shape[-1]), a.reshape(n, -1, a.shape[-1])
    yield rows @ rows.mT, columns @ columns.mT


def _linear_gram_cost(layer: nn.Module, a: Tensor, g: Tensor, n: int) -> float:
    return (a[..., 0].numel() / n) ** 2 * (a.shape[-1] + g.shape[-1])


def _linear_weighted(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    return g.flatten(0, -2).mT @ a.flatten(0, -2)


# Layers that scale channels: scans laid side by side as channels of a single scan keep their own scales, and gradients.


def _recorded_norm(layer: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    layer = cast(nn.GroupNorm, layer)
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
    scans, channels, places = x.shape[0], x.shape[1], x.shape[2:].numel()
    as_one = (1, scans * channels, places, scans * groups)
    return torch.native_group_norm(x.contiguous(), weight, bias, *as_one, layer.eps)[0]


def _recorded_prelu(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    return F.prelu(x.reshape(1, weight.numel(), -1), weight).view(x.shape)


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
        nn.Linear.forward, _linear_gradients, Product(_linear_grams, _linear_gram_cost, _linear_weighted), parts=True
    ),
    **CONVOLUTIONS,
    nn.GroupNorm: Rule(nn.GroupNorm.forward, recorded=_recorded_norm),
    **{
        kind: Rule(kind.forward, recorded=_recorded_norm, refuse=_refuse_instance_norm)
        for kind in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    },
    nn.LayerNorm: Rule(nn.LayerNorm.forward, _layer_norm_gradients, parts=True),
    nn.PReLU: Rule(nn.PReLU.forward, recorded=_recorded_prelu),
    nn.Embedding: Rule(nn.Embedding.forward, _embedding_gradients, refuse=_refuse_embedding),
}  # fmt: skip
"""Every kind of layer whose unit gradients are known in closed form; a subclass that keeps `forward` is tried first."""


SPREAD = Rule(nn.Module.forward, tried=True)
"""For parameters of any other module that meet all scans alike, their first dimension being 1, as tokens and positions of a
transformer do: while a pass is recorded they are copies, one a scan, along that dimension."""


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule of a layer, or None for a kind or a use of it that is not known."""
    if "forward" in vars(layer):  # its own, whatever its kind would do
        return None
    for kind, rule in RULES.items():
        if isinstance(layer, kind):
            known = type(layer).forward is rule.forward and rule.refuse(layer) is None
            return (rule if type(layer) is kind else replace(rule, tried=True)) if known else None
    own = [parameter for parameter in layer._parameters.values() if parameter is not None and parameter.requires_grad]
    spread = all(parameter.shape[:1] == (1,) for parameter in own)
    return window_attention_rule(layer) or (SPREAD if spread else None)
