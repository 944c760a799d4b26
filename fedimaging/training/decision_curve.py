"""Decision-curve analysis: would anybody be better off for acting on the model's probabilities?

The net benefit at a threshold probability p, at which one false alarm is worth p / (1 - p) of a true one, is
TP / n - FP / n x p / (1 - p). Acting on everybody and on nobody are the two rules a model has to beat. It reads the
scores as probabilities, so a model that is badly calibrated loses.

Source: Vickers and Elkin 2006, Medical Decision Making 26, 565-574.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedimaging.results import Interval
from fedimaging.training.bootstrap import Statistic, drawn, interval_of

THRESHOLDS = tuple(round(0.01 * k, 2) for k in range(1, 100))
"""Threshold probabilities 0.01 to 0.99."""


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at each of `thresholds`: of the `model` with its 95 % interval over patients, and of acting on everybody
    (`treat_all`). Acting on nobody has net benefit 0."""

    thresholds: tuple[float, ...]
    model: tuple[Interval, ...]
    treat_all: tuple[float, ...]


def decision_curve(
    scores: np.ndarray, truth: np.ndarray, patient_ids: np.ndarray, *, thresholds: Sequence[float] = THRESHOLDS,
    resamples: int, seed: int,
) -> DecisionCurve:
    """The curve of these scans; scores (S,) probabilities, truth (S,) of 0 and 1. Thresholds lie strictly in (0, 1)."""
    harms = np.array([p / (1 - p) for p in thresholds])
    found_ST = scores[:, None] >= np.array(thresholds)
    gains_ST = found_ST * np.where(truth[:, None] == 1, 1.0, -harms)
    statistic = _means_of(gains_ST)
    points, patients = statistic(np.ones((1, len(scores))))[0], len(np.unique(patient_ids))
    values_RT = drawn(statistic, patient_ids, resamples=resamples, seed=seed)
    model = tuple(interval_of(float(point), values, patients) for point, values in zip(points, values_RT.T, strict=True))
    prevalence = float((truth == 1).mean())
    return DecisionCurve(tuple(thresholds), model, tuple(float(prevalence - (1 - prevalence) * harm) for harm in harms))


def _means_of(gains_ST: np.ndarray) -> Statistic:
    return lambda weights_RS: weights_RS @ gains_ST / weights_RS.sum(1, keepdims=True)
