"""The one parameter of MONAI's windowed attention that no layer inside it owns: its table of relative positions.

The table's entries are added to the attention's logits, one for each pair of places of a window; so the gradient at the input of
the softmax, summed over a unit's windows and over the pairs that share an entry, is the unit's own. Source: Liu et al. 2021.
"""

import sys
from collections.abc import Collection
from typing import Any, cast

from torch import Tensor, nn

from fedimaging.privacy.clipping.rules import Rule, UnitGradients

_MODULE = "monai.networks.nets.swin_unetr"
_TABLE = "relative_position_bias_table"


def _table_gradients(layer: nn.Module, a: Tensor, g: Tensor, n: int, names: Collection[str]) -> UnitGradients:
    attention = cast(Any, layer)
    heads, places = g.shape[-3], g.shape[-1]
    by_pair = g.reshape(n, -1, heads, places * places).sum(1).flatten(0, 1)
    entries = attention.relative_position_index[:places, :places].reshape(1, -1).expand_as(by_pair)
    table = g.new_zeros(n * heads, attention.relative_position_bias_table.shape[0]).scatter_add_(1, entries, by_pair)
    return {_TABLE: table.view(n, heads, -1).transpose(1, 2).reshape(1, n, -1)}


def _softmax(layer: nn.Module) -> nn.Module:
    return cast(nn.Module, layer.softmax)


def window_attention_rule(layer: nn.Module) -> Rule | None:
    """The rule where the layer is MONAI's windowed attention; MONAI is not imported for it."""
    kind = getattr(sys.modules.get(_MODULE), "WindowAttention", None)
    if kind is None or type(layer) is not kind or set(layer._parameters) != {_TABLE} or not hasattr(layer, "softmax"):
        return None
    return Rule(kind.forward, _table_gradients, parts=True, at=_softmax, tried=True)
