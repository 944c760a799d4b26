"""Ranking metrics for many weightings of the same scans at once: what a bootstrap needs to be fast.

Each takes scores (S,), truth (S,) of 0 and 1, and weights (R, S), and returns (R,); NaN where a class has no weight.
Every one equals scikit-learn's function of the same name with `sample_weight` (see the tests).
"""

import numpy as np


def _sums(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positives and negatives (R, G) at each distinct score, highest score first."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    weights, truth = weights[:, order], truth[order].astype(np.float64)
    return np.add.reduceat(weights * truth, starts, axis=1), np.add.reduceat(weights * (1 - truth), starts, axis=1)


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a positive scores above a negative, ties counting half."""
    positive, negative = _sums(scores, truth, weights)
    below = negative.sum(1, keepdims=True) - np.cumsum(negative, axis=1)
    return _ratio((positive * (below + negative / 2)).sum(1), positive.sum(1) * negative.sum(1))


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision at each threshold, weighted by the recall it adds."""
    positive, negative = _sums(scores, truth, weights)
    hits, misses = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
    precision = hits / np.maximum(hits + misses, np.finfo(float).tiny)
    defined = np.where(negative.sum(1) > 0, positive.sum(1), 0.0)
    return _ratio((positive * precision).sum(1), defined)


def sensitivity_at_specificity(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray, least: float) -> np.ndarray:
    """The highest sensitivity of any threshold whose specificity is at least `least`."""
    positive, negative = _sums(scores, truth, weights)
    false_rate = _ratio(np.cumsum(negative, axis=1), negative.sum(1, keepdims=True))
    true_rate = _ratio(np.cumsum(positive, axis=1), positive.sum(1, keepdims=True))
    allowed = false_rate <= 1 - least + 1e-12
    best = np.where(allowed, true_rate, 0.0).max(axis=1)
    return np.where((negative.sum(1) > 0) & (positive.sum(1) > 0), best, np.nan)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of values (S,) that are defined; NaN values weigh nothing."""
    defined = np.isfinite(values)
    return _ratio(weights[:, defined] @ values[defined], weights[:, defined].sum(1))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)
