"""MONAI's ViT, returning its logits alone."""

from monai.networks.nets import ViT
from torch import Tensor


class ViTClassifier(ViT):
    """Drops the list of hidden states that MONAI's ViT returns beside the logits."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *image_size) -> logits (B, K)."""
        logits, _hidden = super().forward(x)
        return logits
