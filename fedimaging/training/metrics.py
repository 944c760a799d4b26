"""Classification metrics with intervals over patients.

Points and intervals come from one set of vectorised functions, which the tests hold equal to scikit-learn's; importing
scikit-learn in every run would cost more than a second.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from fedimaging.results import Interval
from fedimaging.training import weighted
from fedimaging.training.bootstrap import Statistic, interval

CLASSIFICATION_METRICS = ("auroc", "average_precision", "balanced_accuracy", "sensitivity_at_90_specificity", "brier")
SPECIFICITY = 0.9

_PerLabel = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def classification_metrics(
    scores: np.ndarray, labels: np.ndarray, patient_ids: np.ndarray, *, kind: str, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Metric -> value with its 95 % interval.

    scores (S, K) probabilities; labels (S,) class indices, or (S, L) zeros and ones for `multilabel`; patient_ids (S,).
    binary: of class 1. multiclass and multilabel: one against the rest, averaged over the classes or labels that have
    both answers; Brier sums over classes (multiclass) or averages over labels. NaN where only one class is present.
    """
    statistics = classification_statistics(scores, labels, kind)
    points = {name: float(statistic(np.ones((1, len(scores))))[0]) for name, statistic in statistics.items()}
    return {
        name: interval(points[name], statistic, patient_ids, resamples=resamples, seed=seed)
        for name, statistic in statistics.items()
    }


def classification_statistics(scores: np.ndarray, labels: np.ndarray, kind: str) -> dict[str, Statistic]:
    """Metric -> the function that gives it for many weightings (R, S) of these scans; arguments as above."""
    truth_SL, scores_SL = _one_against_rest(scores, labels, kind)
    return {
        "auroc": _macro(weighted.auroc, scores_SL, truth_SL),
        "average_precision": _macro(weighted.average_precision, scores_SL, truth_SL),
        "balanced_accuracy": _balanced_accuracy(scores, labels, kind),
        "sensitivity_at_90_specificity": _macro(
            partial(weighted.sensitivity_at_specificity, least=SPECIFICITY), scores_SL, truth_SL
        ),
        "brier": partial(weighted.mean, _brier(scores, labels, kind)),
    }


def quick_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUROC alone, macro over classes or labels; NaN where only one class is present. For the live view."""
    kind = "multilabel" if labels.ndim == 2 else "multiclass" if scores.shape[1] > 2 else "binary"
    truth, columns = _one_against_rest(scores, labels, kind)
    return float(_macro(weighted.auroc, columns, truth)(np.ones((1, len(scores))))[0])


def _one_against_rest(scores: np.ndarray, labels: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "multilabel":
        return labels > 0.5, scores
    if kind == "binary":
        return (labels == 1)[:, None], scores[:, 1:2]
    return labels[:, None] == np.arange(scores.shape[1]), scores


def _macro(metric: _PerLabel, scores_SL: np.ndarray, truth_SL: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Mean of a metric over the columns that have both answers in the data."""
    columns = [k for k in range(truth_SL.shape[1]) if 0 < truth_SL[:, k].sum() < len(truth_SL)]

    def statistic(weights_RS: np.ndarray) -> np.ndarray:
        if not columns:
            return np.full(len(weights_RS), np.nan)
        return np.mean([metric(scores_SL[:, k], truth_SL[:, k], weights_RS) for k in columns], axis=0)

    return statistic


def _balanced_accuracy(scores: np.ndarray, labels: np.ndarray, kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """Mean recall over the classes present; for multilabel over both answers of every label, at 0.5."""
    if kind == "multilabel":
        return _macro(_binary_balanced_accuracy, scores, labels > 0.5)
    predicted, classes = scores.argmax(1), np.unique(labels)

    def statistic(weights_RS: np.ndarray) -> np.ndarray:
        if len(classes) < 2:
            return np.full(len(weights_RS), np.nan)
        right = (predicted == labels).astype(np.float64)
        return np.mean([weighted.mean(right[labels == k], weights_RS[:, labels == k]) for k in classes], axis=0)

    return statistic


def _binary_balanced_accuracy(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    right = ((scores > 0.5) == truth).astype(np.float64)
    return np.mean([weighted.mean(right[truth == k], weights[:, truth == k]) for k in (False, True)], axis=0)


def _brier(scores: np.ndarray, labels: np.ndarray, kind: str) -> np.ndarray:
    if kind == "multilabel":
        return np.asarray(((scores - labels) ** 2).mean(1), np.float64)
    if kind == "binary":
        return np.asarray((scores[:, 1] - (labels == 1)) ** 2, np.float64)
    return np.asarray(((scores - (labels[:, None] == np.arange(scores.shape[1]))) ** 2).sum(1), np.float64)
