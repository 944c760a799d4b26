"""Evaluate a model on one hospital's test patients: scan by scan, nothing is averaged across patients here."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedimaging.results import Arrays
from fedimaging.training.lesions import scan_lesions
from fedimaging.training.metrics import quick_auroc
from fedimaging.training.segmentation_metrics import quick_dice, scan_segmentation_metrics
from fedimaging.training.tasks import Task
from fedimaging.training.workbench import SiteRecords, Workbench


@dataclass(frozen=True)
class Evaluated:
    """`quick_metrics`: one or two numbers for the live view. `arrays`, rows are scans: `patient` (S,) int64 codes,
    and `scores` (S, K), `labels` (S,) or (S, L) for classification, or one (S, K-1) array per segmentation metric, and, where
    `final`, those of `lesions.py`."""

    loss: float
    n_patients: int
    quick_metrics: dict[str, float]
    arrays: Arrays


def evaluate(
    bench: Workbench, vector: np.ndarray, records: SiteRecords, *, final: bool, surface_tolerance_mm: float = 1.0
) -> Evaluated:
    """Evaluate the full vector (V,) on `records`. `final` adds what is slow: surface distances for segmentation.

    A hospital without test patients gives NaN and empty arrays.
    """
    if not len(records):
        return Evaluated(float("nan"), 0, {}, {})
    bench.load(vector)
    _, patient = np.unique(records.patient_ids, return_inverse=True)
    losses, parts = [], []
    for outputs, y, loss in predict(bench, records):
        losses.append(loss.cpu().numpy())
        parts.append(_per_scan(bench, outputs, y, records, final, surface_tolerance_mm))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["patient"] = patient.astype(np.int64)
    loss_mean = float(np.concatenate(losses).mean())
    return Evaluated(loss_mean, int(patient.max()) + 1, quick_metrics(bench.task, arrays), arrays)


def predict(bench: Workbench, records: SiteRecords, batch: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(outputs, targets, losses (B,)) batch by batch, in the order of the records, with the weights now loaded."""
    if bench.model.training:
        bench.model.eval()  # until training asks for the other mode
    network = bench.network(records)
    size = batch or max(1, min(256, 8_000_000 // max(1, int(np.prod(records.dataset.images.shape[1:])) * 8)))
    with torch.inference_mode():
        for first in range(0, len(records), size):
            places = np.arange(first, min(first + size, len(records)))
            y = records.targets(places, bench.task.kind).to(bench.device)
            outputs = network(bench.placed(records.inputs(places)))
            yield outputs, y, bench.task.losses(outputs, y)


def _per_scan(
    bench: Workbench, outputs: Tensor, y: Tensor, records: SiteRecords, final: bool, tolerance_mm: float
) -> Arrays:
    if not bench.task.needs_mask:
        return {"scores": bench.task.scores(outputs).cpu().numpy(), "labels": y.cpu().numpy()}
    predicted = outputs.argmax(1)
    if not final:
        return {"dice": quick_dice(predicted, y, bench.task.out_channels)}
    spacing = records.dataset.spacing_mm or (1.0,) * (y.ndim - 1)
    found, classes = predicted.cpu(), bench.task.out_channels
    metrics = scan_segmentation_metrics(found, y.cpu(), classes=classes, spacing_mm=spacing, tolerance_mm=tolerance_mm)
    return metrics | scan_lesions(found.numpy(), y.cpu().numpy(), classes)


def quick_metrics(task: Task, arrays: Arrays) -> dict[str, float]:
    """The one figure of the live view, AUROC or Dice, of these scans; NaN where it is not defined."""
    if task.needs_mask:
        return {"dice": float(np.nanmean(arrays["dice"])) if np.isfinite(arrays["dice"]).any() else float("nan")}
    return {"auroc": quick_auroc(arrays["scores"], arrays["labels"])}
