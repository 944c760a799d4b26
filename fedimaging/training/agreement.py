"""How far two measurements of the same thing agree: Bland and Altman's bias and limits of agreement.

Source: Bland and Altman 1986, Lancet 327, 307-310.
"""

import math
from dataclasses import dataclass

import numpy as np

from fedimaging.results import Interval
from fedimaging.training.bootstrap import Statistic, interval

_LIMIT = 1.96  # standard deviations, between which 95 % of the differences lie if they are normal


@dataclass(frozen=True)
class Agreement:
    """`bias`: mean of measured minus true. `lower`, `upper`: limits of agreement, bias ∓ 1.96 standard deviations of the
    differences. All in the unit of the measurements, with 95 % intervals over patients."""

    bias: Interval
    lower: Interval
    upper: Interval


def agreement(measured: np.ndarray, true: np.ndarray, patient_ids: np.ndarray, *, resamples: int, seed: int) -> Agreement:
    """Agreement of two measurements (S,) of each scan; those of which one is NaN are left out."""
    both = np.isfinite(measured) & np.isfinite(true)
    differences, ids = (measured - true)[both], patient_ids[both]

    def over(statistic: Statistic) -> Interval:
        point = float(statistic(np.ones((1, len(differences))))[0]) if len(differences) else math.nan
        return interval(point, statistic, ids, resamples=resamples, seed=seed)

    return Agreement(over(_at(differences, 0.0)), over(_at(differences, -_LIMIT)), over(_at(differences, _LIMIT)))


def _at(differences: np.ndarray, deviations: float) -> Statistic:
    """Mean plus so many standard deviations (of a sample: n - 1), for many weightings."""

    def statistic(weights_RS: np.ndarray) -> np.ndarray:
        n = weights_RS.sum(1)
        mean = weights_RS @ differences / n
        if not deviations:
            return mean
        squares = np.maximum(weights_RS @ differences**2 - n * mean**2, 0.0)
        deviation = np.sqrt(np.divide(squares, n - 1, out=np.full(len(n), np.nan), where=n > 1))
        return np.asarray(mean + deviations * deviation)

    return statistic
