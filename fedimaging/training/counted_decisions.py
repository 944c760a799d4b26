"""Thresholds, rates and net benefit from noised totals over patients: post-processing of what hospitals released.

A threshold can only be one of the public borders between the bins of a score; a patient in a bin above it is positive. Of a
binary task alone: `cells` (1, 2, BINS), patients without and with the finding.
"""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from fedimaging.privacy.released_metrics import EDGES
from fedimaging.results import Interval
from fedimaging.training.counted_metrics import possible, told_apart, with_interval
from fedimaging.training.decision_curve import DecisionCurve
from fedimaging.training.operating_point import RATES

BORDERS = (0.0, *(float(edge) for edge in EDGES))
"""What a threshold may be; 0: everybody is positive."""


def counted_threshold(released: Mapping[str, np.ndarray], *, aim: str, target: float) -> float | None:
    """The border that keeps `aim` at `target` or above and the other as high as it can be; None where a class is lost in the
    noise, or no border keeps the aim."""
    cells, std = np.asarray(released["cells"], np.float64), float(released["noise_std"])
    if not told_apart(cells[0], std):
        return None
    smooth = possible(cells).reshape(1, 2, len(BORDERS), -1).sum(axis=3)
    kept = [place for place in range(len(BORDERS)) if _rate(aim, place, smooth)[0] >= target]
    if not kept:
        return None
    return BORDERS[max(kept) if aim == "sensitivity" else min(kept)]


def counted_rates(
    released: Mapping[str, np.ndarray], threshold: float, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """The four rates at a threshold that is one of BORDERS, with 95 % intervals that hold the noise too."""
    cells, std, place = np.asarray(released["cells"], np.float64), float(released["noise_std"]), BORDERS.index(threshold)
    seen, patients = told_apart(cells[0], std), max(0, round(float(cells.sum())))
    if not seen:
        return {name: Interval(math.nan, math.nan, math.nan, patients) for name in RATES}
    return {
        name: with_interval(
            partial(_of_totals, name, place), cells, np.maximum(cells, 0.0), std, patients, resamples, seed)
        for name in RATES
    }  # fmt: skip


def counted_curve(released: Mapping[str, np.ndarray], *, resamples: int = 1000, seed: int = 0) -> DecisionCurve | None:
    """The decision curve at the borders; None where a class is lost in the noise."""
    cells, std = np.asarray(released["cells"], np.float64), float(released["noise_std"])
    if not told_apart(cells[0], std):
        return None
    patients, variance = max(0, round(float(cells.sum()))), np.maximum(cells, 0.0)
    model = tuple(
        with_interval(partial(_benefit, place), cells, variance, std, patients, resamples, seed)
        for place in range(1, len(BORDERS))
    )
    everybody = tuple(float(_benefit(0, cells[None], at=place)[0]) for place in range(1, len(BORDERS)))
    return DecisionCurve(BORDERS[1:], model, everybody)


def _of_totals(name: str, place: int, totals: np.ndarray) -> np.ndarray:
    return _rate(name, place, totals[:, 0])


def _rate(name: str, place: int, cells: np.ndarray) -> np.ndarray:
    """One of RATES (R,) of counts (R, 2, BINS) with everybody from bin `place` on called positive, clipped to [0, 1]."""
    positive, negative = cells[:, :, place:].sum(2), cells[:, :, :place].sum(2)
    part, whole = {
        "sensitivity": (positive[:, 1], positive[:, 1] + negative[:, 1]),
        "specificity": (negative[:, 0], positive[:, 0] + negative[:, 0]),
        "ppv": (positive[:, 1], positive.sum(1)), "npv": (negative[:, 0], negative.sum(1)),
    }[name]
    share = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return np.clip(share, 0.0, 1.0)


def _benefit(place: int, totals: np.ndarray, at: int | None = None) -> np.ndarray:
    """Net benefit (R,) at border `at` (default: the same) of acting on everybody from bin `place` on."""
    threshold = BORDERS[place if at is None else at]
    positive, everybody = totals[:, 0, :, place:].sum(2), totals[:, 0].sum((1, 2))
    gain = positive[:, 1] - positive[:, 0] * threshold / (1 - threshold)
    return np.divide(gain, everybody, out=np.full(len(gain), np.nan), where=everybody > 0)
