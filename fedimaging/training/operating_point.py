"""A threshold chosen on some patients, and what it does on others: sensitivity, specificity, and predictive values.

A score at or above the threshold is called positive. Whoever chooses the threshold on the patients on which it is then judged
flatters the model: the functions take scores, and the callers see to it that the two are different patients.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedimaging.results import Interval
from fedimaging.training.bootstrap import Statistic, interval

RATES = ("sensitivity", "specificity", "ppv", "npv")
_TAIL = 0.025  # of a 95 % interval


def choose_threshold(scores: np.ndarray, truth: np.ndarray, *, aim: str, target: float) -> float | None:
    """The threshold that keeps `aim` ("sensitivity" or "specificity") at `target` or above and the other as high as it can be.

    scores, truth (S,) of 0 and 1. It lies midway between two scores. None where the class that the aim counts is absent.
    """
    counted = np.sort(scores[truth == (aim == "sensitivity")])
    if not len(counted):
        return None
    needed = math.ceil(target * len(counted) - 1e-9)  # of these on their side of the threshold
    if not needed:
        return math.inf if aim == "sensitivity" else -math.inf
    if aim == "sensitivity":
        edge = counted[-needed]
        below = scores[scores < edge]
        return float((edge + below.max()) / 2) if len(below) else float(edge)
    edge = counted[needed - 1]
    above = scores[scores > edge]
    return float((edge + above.min()) / 2) if len(above) else math.nextafter(float(edge), math.inf)


def rates_at(
    scores: np.ndarray, truth: np.ndarray, patient_ids: np.ndarray, threshold: float, *, resamples: int, seed: int
) -> dict[str, Interval]:
    """The four RATES of these scans at the threshold, with 95 % intervals over patients.

    Where all of n patients that a rate counts are on one side, resampling knows no spread: the exact (Clopper and Pearson
    1934) limit for n patients stands in its place. `n_patients` is how many the rate counts. NaN where it counts none.
    """
    found, there = scores >= threshold, truth == 1
    parts = {"sensitivity": (found, there), "specificity": (~found, ~there), "ppv": (there, found), "npv": (~there, ~found)}
    return {name: _rate(right, among, patient_ids, resamples, seed) for name, (right, among) in parts.items()}


def ratio(above: np.ndarray, below: np.ndarray) -> Statistic:
    """The statistic sum(weight x above) / sum(weight x below), NaN where nothing is below."""
    above, below = above.astype(np.float64), below.astype(np.float64)

    def statistic(weights_RS: np.ndarray) -> np.ndarray:
        top, bottom = weights_RS @ above, weights_RS @ below
        return np.divide(top, bottom, out=np.full(len(bottom), np.nan), where=bottom > 0)

    return statistic


def _rate(right: np.ndarray, among: np.ndarray, patient_ids: np.ndarray, resamples: int, seed: int) -> Interval:
    ids = patient_ids[among]
    patients = len(np.unique(ids))
    if not patients:
        return Interval(math.nan, math.nan, math.nan, 0)
    found = interval(
        float(right[among].mean()), ratio(right & among, among), patient_ids, resamples=resamples, seed=seed)
    return with_exact_ends(replace(found, n_patients=patients))


def with_exact_ends(share: Interval) -> Interval:
    """A share of its patients; where it is 0 or 1, with the exact limit for so many patients."""
    if share.value not in (0.0, 1.0) or not share.n_patients:
        return share
    bound = _TAIL ** (1 / share.n_patients)
    return replace(share, low=bound, high=1.0) if share.value else replace(share, low=0.0, high=1 - bound)


def rates_of_counts(counts: Sequence[float]) -> dict[str, float]:
    """The four RATES from the patients (or scans) that are truly and falsely positive, and truly and falsely negative."""
    tp, fp, tn, fn = counts
    pairs = {"sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp), "ppv": (tp, tp + fp), "npv": (tn, tn + fn)}
    return {name: part / whole if whole > 0 else math.nan for name, (part, whole) in pairs.items()}
