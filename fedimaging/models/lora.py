"""Low-rank updates of a transformer's linear layers (Hu et al. 2022, LoRA): few trained tensors, so little noise.

Worth it from pretrained weights: what is not trained stays as it was loaded.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from fedimaging.errors import StudyError


class LoraLinear(nn.Module):
    """base(x) + up(down(x)): the loaded layer, frozen, and a product of two thin ones that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def add_lora(model: nn.Module, rank: int, *, but: Collection[str], seed: int) -> set[str]:
    """Wrap every linear layer that owns none of the parameters named in `but`; returns the new parameters' names.

    The model's outputs stay as they were. Equal arguments give equal weights. Error: StudyError for a network without
    such a layer.
    """
    chosen = [
        (parent, name, child)
        for prefix, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and f"{prefix}.{name}.weight".lstrip(".") not in but
    ]
    if not chosen:
        raise StudyError(
            "model.trainable='lora' needs linear layers before the last (vit and swin_unetr have them); take head, norm or all."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for parent, name, child in chosen:
            setattr(parent, name, LoraLinear(child, rank).to(child.weight.device))
    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    return {f"{name}.{part}.weight" for name in wrapped for part in ("down", "up")}
