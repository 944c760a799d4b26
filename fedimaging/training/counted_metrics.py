"""Metrics from noised totals over patients (`privacy/released_metrics.py`), with intervals that know the noise.

All of it is post-processing of what a hospital released. An interval covers both the luck of which patients were tested
(a count of c has a variance of about c) and the noise, by redrawing every number with both. Where a class is not told
from noise, the metric is not defined.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from fedimaging.results import Arrays, Interval
from fedimaging.training import weighted
from fedimaging.training.metrics import SPECIFICITY

_SEEN = 2.0  # a class counts as there where its noised number of patients is so many standard deviations above 0
_AT_ONCE = 250  # resamples held at a time
_PARTS = 8  # a bin's patients are spread evenly over so many parts, where a metric needs thresholds inside a bin


def added_up(released: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """The totals of several hospitals together; their noises add up as variances. All must have the same shapes."""
    names = [name for name in released[0] if name != "noise_std"]
    total = {name: np.stack([one[name] for one in released]).sum(axis=0, dtype=np.float64) for name in names}
    return total | {"noise_std": np.array(math.hypot(*(float(one["noise_std"]) for one in released)))}


def counted_metrics(released: Mapping[str, np.ndarray], *, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Metric -> value with its 95 % interval, from one hospital's totals or `added_up` ones.

    From `cells`: AUROC, average precision, balanced accuracy at 0.5 (of `confusion` where it is there) and sensitivity at
    90 % specificity, averaged over columns. Patients within a bin are taken as evenly mixed, which lowers AUROC and
    average precision a little. From `overlap`: Dice of each class and their mean. Values are clipped to [0, 1]; NaN where
    a class is lost in the noise. resamples 0: no intervals.
    """
    std = float(released["noise_std"])
    if "overlap" in released:
        return _overlap_metrics(np.asarray(released["overlap"], np.float64), std, resamples, seed)
    cells = np.asarray(released["cells"], np.float64)
    patients = max(0, round(float(cells.sum()) / len(cells)))
    seen = [c for c in range(len(cells)) if told_apart(cells[c], std)]
    statistics: dict[str, tuple[np.ndarray, TotalsStatistic]] = {
        "auroc": (cells, partial(_macro, _auroc, seen)),
        "average_precision": (cells, partial(_macro, _average_precision, seen)),
        "balanced_accuracy": (cells, partial(_macro, _balanced_accuracy, seen)),
        "sensitivity_at_90_specificity": (cells, partial(_macro, _sensitivity, seen)),
    }
    if "confusion" in released:
        confusion = np.asarray(released["confusion"], np.float64)
        rows = [k for k in range(len(confusion)) if confusion[k].sum() > _SEEN * std * math.sqrt(len(confusion))]
        statistics["balanced_accuracy"] = (confusion, partial(_mean_recall, rows))
    return {
        name: with_interval(statistic, totals, np.maximum(totals, 0.0), std, patients, resamples, seed)
        for name, (totals, statistic) in statistics.items()
    }


TotalsStatistic = Callable[[np.ndarray], np.ndarray]
"""Totals (R, ...) of R resamples -> (R,)."""


def with_interval(
    statistic: TotalsStatistic, totals: np.ndarray, variance: np.ndarray, std: float, patients: int, resamples: int, seed: int
) -> Interval:
    """The statistic of these totals with the 95 % interval of redrawn ones: each number has its own `variance` and that of the
    noise. resamples 0: no interval. NaN where it is not defined."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    point = float(statistic(totals[None])[0])
    if math.isnan(point):
        return Interval(math.nan, math.nan, math.nan, patients)
    if not resamples:
        return Interval(point, math.nan, math.nan, patients)
    spread = np.sqrt(variance + std**2)
    values = np.concatenate([
        statistic(totals + spread * rng.standard_normal((min(_AT_ONCE, resamples - first), *totals.shape)))
        for first in range(0, resamples, _AT_ONCE)
    ])
    values = values[np.isfinite(values)]
    if len(values) < resamples / 2:
        return Interval(point, math.nan, math.nan, patients)
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(point, float(low), float(high), patients)


def told_apart(cells: np.ndarray, std: float) -> bool:
    """Both answers of a column (2, BINS) are there, as far as the noise lets one see."""
    return bool((cells.sum(1) > _SEEN * std * math.sqrt(cells.shape[1])).all())


def _macro(metric: TotalsStatistic, seen: Sequence[int], totals: np.ndarray) -> np.ndarray:
    """Mean over the columns seen of a metric of (R, 2, BINS), clipped to [0, 1]."""
    if not seen:
        return np.full(len(totals), np.nan)
    return np.clip(np.mean([metric(totals[:, column]) for column in seen], axis=0), 0.0, 1.0)


def _as_scans(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R, 2, BINS) as scores, truths and weights of one scan a cell."""
    bins = cells.shape[2]
    return np.tile(np.arange(bins, dtype=np.float64), 2), np.repeat([0, 1], bins), cells.reshape(len(cells), -1)


def _auroc(cells: np.ndarray) -> np.ndarray:
    return weighted.auroc(*_as_scans(cells))  # linear in each noise: no cell is clipped, so noise does not bias it


def _average_precision(cells: np.ndarray) -> np.ndarray:
    return weighted.average_precision(*_as_scans(possible(cells)))


def _sensitivity(cells: np.ndarray) -> np.ndarray:
    return weighted.sensitivity_at_specificity(*_as_scans(possible(cells)), least=SPECIFICITY)


def possible(cells: np.ndarray) -> np.ndarray:
    """Counts that could be true (R, 2, BINS * _PARTS): cumulated from the highest score they only rise. Midway between the
    least rising curve above and the greatest below, so that the total hardly moves."""
    curve = np.cumsum(cells[..., ::-1], axis=-1)
    above = np.maximum.accumulate(curve, axis=-1)
    below = np.minimum.accumulate(curve[..., ::-1], axis=-1)[..., ::-1]
    rising = np.maximum((above + below) / 2, 0.0)
    return np.repeat(np.diff(rising, axis=-1, prepend=0.0)[..., ::-1] / _PARTS, _PARTS, axis=-1)


def _balanced_accuracy(cells: np.ndarray) -> np.ndarray:
    """Mean of the shares on the right side of 0.5, the middle border."""
    half = cells.shape[2] // 2
    right = np.stack([cells[:, 0, :half].sum(1), cells[:, 1, half:].sum(1)], axis=1)
    return _shares(right, cells.sum(2)).mean(1)


def _mean_recall(rows: Sequence[int], confusion: np.ndarray) -> np.ndarray:
    """Mean over the classes seen of the share given the right class, from (R, K, K)."""
    if len(rows) < 2:
        return np.full(len(confusion), np.nan)
    right = np.diagonal(confusion, axis1=1, axis2=2)[:, rows]
    return np.clip(_shares(right, confusion.sum(2)[:, rows]).mean(1), 0.0, 1.0)


def _overlap_metrics(overlap: np.ndarray, std: float, resamples: int, seed: int) -> dict[str, Interval]:
    seen = [k for k in range(len(overlap)) if overlap[k, 1] > _SEEN * std]
    patients = max(0, round(float(overlap[:, 1].max())))

    def dice(of: Sequence[int], totals: np.ndarray) -> np.ndarray:
        if not of:
            return np.full(len(totals), np.nan)
        return np.clip(_shares(totals[:, of, 0], totals[:, of, 1]).mean(1), 0.0, 1.0)

    # Dice lies in [0, 1], so its variance is at most that of a coin of the same mean; the number of patients is given.
    mean = np.clip(_shares(overlap[:, 0], overlap[:, 1]), 0.0, 1.0)
    luck = np.stack([np.nan_to_num(np.maximum(overlap[:, 1], 0.0) * mean * (1 - mean)), np.zeros(len(overlap))], axis=1)
    columns: dict[str, list[int]] = {"dice": seen}
    if len(overlap) > 1:
        columns |= {f"dice_{k + 1}": [k] if k in seen else [] for k in range(len(overlap))}
    return {
        name: with_interval(partial(dice, of), overlap, luck, std, patients, resamples, seed) for name, of in columns.items()
    }


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)
