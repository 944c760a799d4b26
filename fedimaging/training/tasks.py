"""Tasks: how a network's outputs become one loss a scan, and scores.

No loss couples scans: `losses(outputs, targets)[i]` depends on row i alone, so that the gradient of a patient's loss
is that patient's own (batch-wise Dice, for one, is not offered). All are plain tensor code that torch.func.vmap can run.
Legend: B scans, K outputs, L labels, * spatial sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedimaging.training.task_spec import TaskSpec

DICE_SMOOTHING = 1.0


@dataclass(frozen=True)
class Task:
    """A task as functions of tensors.

    out_channels: K, what the network must give.
    label_columns: manifest columns behind `targets`; needs_mask: targets are masks instead.
    losses(outputs, targets) -> (B,) float32, one a scan. Targets: (B,) integers (binary, multiclass), (B, L) floats
        (multilabel), (B, *) integers of any width (segmentation).
    scores(outputs) -> probabilities in the shape of outputs, float32.
    """

    kind: str
    out_channels: int
    label_columns: tuple[str, ...]
    class_names: tuple[str, ...]
    losses: Callable[[Tensor, Tensor], Tensor]
    scores: Callable[[Tensor], Tensor]

    @property
    def needs_mask(self) -> bool:
        """True for segmentation."""
        return self.kind == "segmentation"

    @property
    def multilabel(self) -> bool:
        """True when labels are (N, L)."""
        return self.kind == "multilabel"


def make_task(spec: TaskSpec) -> Task:
    """The task of a study."""
    return TASKS[spec.kind](spec)


def cross_entropy_losses(outputs_BK: Tensor, targets_B: Tensor) -> Tensor:
    """Softmax cross-entropy (nats), (B, K) and (B,) -> (B,)."""
    return F.cross_entropy(outputs_BK.float(), targets_B.long(), reduction="none")


def multilabel_losses(outputs_BL: Tensor, targets_BL: Tensor) -> Tensor:
    """Binary cross-entropy with logits, averaged over the labels, (B, L) and (B, L) -> (B,)."""
    return F.binary_cross_entropy_with_logits(outputs_BL.float(), targets_BL.float(), reduction="none").mean(1)


def dice_cross_entropy_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice loss plus cross-entropy of each scan by itself, (B, K, *) and (B, *) -> (B,).

    Dice is averaged over the foreground classes 1..K-1 (Milletari et al. 2016), with one voxel of smoothing so that a
    class that is absent has a finite, small gradient; cross-entropy is averaged over pixels. float32 throughout.
    """
    logits, labels = outputs.float(), targets.long()
    cross_entropy = F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(1)
    probabilities = logits.softmax(1).flatten(2)[:, 1:]
    classes = torch.arange(1, logits.shape[1], device=logits.device)
    truth = (labels.flatten(1).unsqueeze(1) == classes.view(1, -1, 1)).float()
    overlap = (probabilities * truth).sum(2)
    size = probabilities.sum(2) + truth.sum(2)
    dice = (2 * overlap + DICE_SMOOTHING) / (size + DICE_SMOOTHING)
    return cross_entropy + 1 - dice.mean(1)


def softmax_scores(outputs: Tensor) -> Tensor:
    """Class probabilities along dimension 1."""
    return outputs.float().softmax(1)


def sigmoid_scores(outputs: Tensor) -> Tensor:
    """A probability for each label."""
    return outputs.float().sigmoid()


def _single_label(spec: TaskSpec) -> Task:
    return Task(spec.kind, spec.classes, spec.columns, _names(spec), cross_entropy_losses, softmax_scores)


def _multilabel(spec: TaskSpec) -> Task:
    return Task(spec.kind, spec.n_outputs, spec.columns, _names(spec), multilabel_losses, sigmoid_scores)


def _segmentation(spec: TaskSpec) -> Task:
    return Task(spec.kind, spec.classes, (), _names(spec), dice_cross_entropy_losses, softmax_scores)


def _names(spec: TaskSpec) -> tuple[str, ...]:
    if spec.class_names is not None:
        return spec.class_names
    return spec.labels if spec.kind == "multilabel" else tuple(str(k) for k in range(spec.classes))


TASKS: dict[str, Callable[[TaskSpec], Task]] = {
    "binary": _single_label,
    "multiclass": _single_label,
    "multilabel": _multilabel,
    "segmentation": _segmentation,
}
"""Task constructors by the `kind` of a TaskSpec."""

__all__ = ["TASKS", "Task", "TaskSpec", "make_task"]
