"""One temperature for a model, from sums that hospitals released (`privacy/tempering.py`), with an interval; and a model's
probabilities at a temperature.

All of it is post-processing: nothing here sees a scan or a score of a hospital.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedimaging.privacy.tempering import TEMPERATURES, logits_of
from fedimaging.results import Interval

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator

WIDEST = 5.0
"""The greatest ratio of the two ends of an interval of a temperature that is used."""
_TWO_SIDED = 1.959963984540054  # standard deviations in a 95 % interval


def tempered(scores: np.ndarray, kind: str, temperature: float) -> np.ndarray:
    """Probabilities (S, K) float64 at a temperature, from those at temperature 1.

    The order of classes within a scan, and for `binary` of scans, stays; AUROC does not change. `scores` as a network gives
    them: softmax for `binary` and `multiclass`, a sigmoid a label for `multilabel`.
    """
    logits = logits_of(scores, kind) / temperature
    if kind == "multilabel":
        return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def added_curves(released: Sequence[tuple[np.ndarray, float]]) -> tuple[np.ndarray, float]:
    """Sums (T,) and deviation of their noise, of several hospitals together; noises add up as variances."""
    curve = np.sum([np.asarray(sums, np.float64) for sums, _ in released], axis=0)
    return curve, math.hypot(*(std for _, std in released))


def fit_temperature(sums: np.ndarray, noise_std: float, n_patients: int = 0) -> Interval:
    """The temperature at which the released sums (T,) cross zero, with a 95 % interval over patients and noise.

    Noise is first taken out as far as it breaks the order that true sums have (isotonic regression, Barlow et al. 1972), and
    the curve between temperatures is a monotone cubic (Fritsch and Carlson 1980) over log T. The interval holds every
    temperature at which the curve lies within 1.96 deviations of zero. Beside the noise, a sum over patients has a variance of
    at most its own slope (the information equality, as weights are at most 1), and of at most the sum at the coldest temperature
    (a patient about whom the model is sure hardly varies). NaN throughout where the temperature
    or an end of its interval lies outside the grid, or the interval is wider than a factor of `WIDEST`: too few patients, too
    much noise, or a model that does not discriminate. Such a temperature may do more harm than good.
    """
    from scipy.interpolate import PchipInterpolator
    from scipy.optimize import isotonic_regression

    unknown = Interval(math.nan, math.nan, math.nan, n_patients)
    inverse = 1 / np.array(TEMPERATURES[::-1])  # rising, as the sums then do
    rising = isotonic_regression(np.asarray(sums, np.float64)[::-1]).x
    if not (np.isfinite(rising).all() and rising[0] < 0 < rising[-1]):
        return unknown
    curve = PchipInterpolator(np.log(inverse), rising)
    middle = _crossing(curve, 0.0)
    slope = max(float(curve.derivative()(math.log(middle))) / middle, 0.0)
    reach = _TWO_SIDED * math.sqrt(min(slope, float(rising[-1])) + noise_std**2)
    if not rising[0] < -reach < reach < rising[-1]:
        return unknown
    low, high = 1 / _crossing(curve, reach), 1 / _crossing(curve, -reach)
    return Interval(1 / middle, low, high, n_patients) if high <= WIDEST * low else unknown


def _crossing(curve: "PchipInterpolator", level: float) -> float:
    """1/T where a rising curve over log(1/T) crosses a level; the middle of a flat piece."""
    roots = curve.solve(level, extrapolate=False)
    return math.exp(float(np.median(roots[np.isfinite(roots)])))
