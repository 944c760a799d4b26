"""How unlike the reference an image is: distances to a mean under a shrunk covariance, read as a quantile.

Mahalanobis distances of simple input features and of the network's penultimate features (Lee et al. 2018, A Simple Unified
Framework for Detecting Out-of-Distribution Samples), with the covariance shrunk after Ledoit and Wolf 2004. All that is kept
of the reference images are means and covariances over patients; of distances, the mean and deviation of their logarithm over
patients who were left out when the mean and covariance were made.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

MOST_DIMENSIONS = 32
FLAG_ABOVE = 0.99
"""Of `together`: about one image in a hundred of those that are like the reference is flagged."""
_FOLDS = 5
_LEAST = 1e-12


def fitted(values_NF: np.ndarray, patients: np.ndarray, least: int) -> dict[str, Any] | None:
    """Aggregates of reference values (N, F) of patients (N,); None for fewer patients than `least`, or twice the folds.

    Above MOST_DIMENSIONS features, fixed random directions of them stand for all (seed and size are public).
    """
    _, member = np.unique(patients, return_inverse=True)
    if int(member.max(initial=-1)) + 1 < max(least, 2 * _FOLDS):
        return None
    x = _projected(np.asarray(values_NF, np.float64))
    distances = np.empty(len(x))
    for fold in range(_FOLDS):
        out = member % _FOLDS == fold
        distances[out] = _distance(x[out], *_moments(x[~out]))
    logs = np.array([np.log(np.maximum(distances[member == k], _LEAST)).mean() for k in range(member.max() + 1)])
    mean, covariance = _moments(x)
    return {
        "dimensions": values_NF.shape[1], "mean": _rounded(mean), "covariance": [_rounded(row) for row in covariance],
        "log_distance_mean": round(float(logs.mean()), 6), "log_distance_deviation": round(float(logs.std(ddof=1)), 6),
    }


def quantiles(reference: dict[str, Any], values_NF: np.ndarray) -> np.ndarray:
    """(N,): the share of reference patients who lie nearer to their mean, were the logarithm of distances normal."""
    x = _projected(np.asarray(values_NF, np.float64))
    distance = _distance(x, np.array(reference["mean"]), np.array(reference["covariance"]))
    width = max(reference["log_distance_deviation"], 1e-6)
    z = (np.log(np.maximum(distance, _LEAST)) - reference["log_distance_mean"]) / width
    return np.array([NormalDist().cdf(float(one)) for one in z])


def together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(N,): one quantile from several (N,), so that a limit on it holds for all of them together (Bonferroni)."""
    return np.asarray(1 - np.minimum(1, len(parts) * (1 - np.max(parts, axis=0))))


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and shrunk covariance (F, F) of standardised features; a feature that never changes gets a small variance."""
    from sklearn.covariance import ledoit_wolf

    scale = np.maximum(x.std(0), 1e-6)
    covariance = ledoit_wolf((x - x.mean(0)) / scale)[0] if x.shape[1] > 1 else np.ones((1, 1))
    return x.mean(0), covariance * np.outer(scale, scale)


def _distance(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    centred = x - mean
    return np.asarray(np.einsum("nf,nf->n", centred, np.linalg.solve(covariance, centred.T).T))


def _projected(x: np.ndarray) -> np.ndarray:
    if x.shape[1] <= MOST_DIMENSIONS:
        return x
    directions = np.random.Generator(np.random.PCG64(0)).standard_normal((x.shape[1], MOST_DIMENSIONS))
    return x @ directions / np.sqrt(x.shape[1])


def _rounded(row: np.ndarray) -> list[float]:
    return [float(f"{value:.9g}") for value in row]
