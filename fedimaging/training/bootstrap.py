"""Confidence intervals by bootstrap over patients: a patient's scans are drawn together or not at all."""

from collections.abc import Callable, Iterator

import numpy as np

from fedimaging.results import Interval

_CELLS = 4_000_000  # weights held at a time (resamples x scans): 32 MB

Statistic = Callable[[np.ndarray], np.ndarray]
"""Scan weights (R, S) -> a value for each of the R resamples; NaN where it is not defined."""


def interval(point: float, statistic: Statistic, patient_ids: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """95 % percentile interval of `statistic` around `point`. Resamples where it is not defined are left out.

    A patient drawn k times weighs k: the statistic sees weights (R, S), so nothing is copied and nothing is looped.
    NaN limits where fewer than half of the resamples are defined, or `point` itself is not.
    """
    n_patients = len(np.unique(patient_ids))
    if point != point or n_patients < 2:
        return Interval(float(point), float("nan"), float("nan"), n_patients)
    return interval_of(point, drawn(statistic, patient_ids, resamples=resamples, seed=seed), n_patients)


def drawn(statistic: Statistic, patient_ids: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """The statistic (resamples, …) of so many resamples of the patients; NaN where it is not defined."""
    _, member = np.unique(patient_ids, return_inverse=True)
    n_patients = int(member.max()) + 1
    return np.concatenate([statistic(weights) for weights in _weights(member, n_patients, resamples, seed)])


def interval_of(point: float, values: np.ndarray, n_patients: int) -> Interval:
    """95 % percentile interval around `point` from resampled values, those that are not defined left out; no limits where
    these are more than half."""
    defined = values[np.isfinite(values)]
    if point != point or len(defined) < len(values) / 2:
        return Interval(float(point), float("nan"), float("nan"), n_patients)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(float(point), float(low), float(high), n_patients)


def _weights(member: np.ndarray, n_patients: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=seed))
    left = resamples
    while left:
        count = min(left, max(1, _CELLS // max(len(member), n_patients)))
        drawn = rng.integers(0, n_patients, (count, n_patients))
        times = np.zeros((count, n_patients))
        np.add.at(times, (np.arange(count)[:, None], drawn), 1.0)
        yield times[:, member]
        left -= count
