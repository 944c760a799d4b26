"""Segmentation metrics scan by scan, then over patients: Dice, surface Dice, and 95 % Hausdorff distance in mm."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedimaging import lean_imports
from fedimaging.results import Arrays, Interval
from fedimaging.training import weighted
from fedimaging.training.bootstrap import Statistic, interval

SEGMENTATION_METRICS = ("dice", "surface_dice", "hd95_mm")


def quick_dice(predicted: Tensor, truth: Tensor, classes: int) -> np.ndarray:
    """Dice (B, K-1) of each foreground class from label maps (B, *); NaN where the class is neither there nor found."""
    columns = []
    for k in range(1, classes):
        found, there = (predicted == k).flatten(1), (truth == k).flatten(1)
        size = (found.sum(1) + there.sum(1)).double()
        columns.append(torch.where(size > 0, 2 * (found & there).sum(1) / size, torch.nan))
    return torch.stack(columns, 1).cpu().numpy()


def scan_segmentation_metrics(
    predicted: Tensor, truth: Tensor, *, classes: int, spacing_mm: Sequence[float], tolerance_mm: float
) -> Arrays:
    """Each metric (B, K-1) for label maps (B, *), by MONAI.

    `surface_dice`: share of both surfaces within `tolerance_mm` of the other (Nikolov et al. 2018). `hd95_mm`: 95th
    percentile of surface distances; where a class is there but not found, or found but not there, it counts the
    image's diagonal. NaN where a class is neither.
    """
    lean_imports.install()
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    from monai.networks.utils import one_hot

    hot_found = one_hot(predicted[:, None].long(), classes).float()
    hot_there = one_hot(truth[:, None].long(), classes).float()
    dice = quick_dice(predicted, truth, classes)
    either = np.isfinite(dice)
    both = ((hot_found.flatten(2).sum(2) > 0) & (hot_there.flatten(2).sum(2) > 0)).numpy()[:, 1:]
    surface = np.where(either, 0.0, np.nan)
    diagonal = float(np.linalg.norm([n * mm for n, mm in zip(truth.shape[1:], spacing_mm, strict=True)]))
    distance = np.where(either, diagonal, np.nan)
    for b in np.flatnonzero(both.any(1)):
        one, other = hot_found[b : b + 1], hot_there[b : b + 1]
        with warnings.catch_warnings():
            # MONAI warns of its own call inside these two, and of classes that `both` leaves out.
            warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
            warnings.filterwarnings("ignore", ".* is all 0, this may result in nan/inf distance", UserWarning)
            near = compute_surface_dice(one, other, [tolerance_mm] * (classes - 1), spacing=list(spacing_mm))
            far = compute_hausdorff_distance(one, other, percentile=95, spacing=list(spacing_mm))
        surface[b] = np.where(both[b], near[0].numpy(), surface[b])
        distance[b] = np.where(both[b], far[0].numpy(), distance[b])
    return {"dice": dice, "surface_dice": surface, "hd95_mm": distance}


def segmentation_intervals(
    arrays: Mapping[str, np.ndarray], patient_ids: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Each metric (S, K-1), averaged over foreground classes, with its 95 % interval over patients (S,); each class
    apart as well where there are several (`dice_1` …)."""
    statistics = segmentation_statistics(arrays)
    one = np.ones((1, len(patient_ids)))
    return {
        name: interval(float(statistic(one)[0]), statistic, patient_ids, resamples=resamples, seed=seed)
        for name, statistic in statistics.items()
    }


def segmentation_statistics(arrays: Mapping[str, np.ndarray]) -> dict[str, Statistic]:
    """Metric -> the function that gives it for many weightings (R, S) of these scans; arguments and names as above."""
    statistics: dict[str, Statistic] = {}
    for name in SEGMENTATION_METRICS:
        if name not in arrays:
            continue
        values_SK = arrays[name]
        defined = np.isfinite(values_SK)
        totals = np.where(defined, values_SK, 0.0).sum(1)
        means = np.divide(totals, defined.sum(1), out=np.full(len(totals), np.nan), where=defined.any(1))
        statistics[name] = partial(weighted.mean, means)
        if values_SK.shape[1] > 1:
            statistics |= {f"{name}_{k + 1}": partial(weighted.mean, values_SK[:, k]) for k in range(values_SK.shape[1])}
    return statistics
