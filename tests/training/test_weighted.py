from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

from fedimaging.training import weighted

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 60)
SCORES = np.round(RNG.random(60) * 0.7 + 0.3 * TRUTH, 1)  # rounded: many ties
WEIGHTS = RNG.integers(0, 4, (25, 60)).astype(float)


def sensitivity(truth: np.ndarray, scores: np.ndarray, sample_weight: np.ndarray) -> float:
    false, true, _ = metrics.roc_curve(truth, scores, sample_weight=sample_weight, drop_intermediate=False)
    return float(true[false <= 0.1 + 1e-12].max())


def ours(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weighted.sensitivity_at_specificity(scores, truth, weights, least=0.9)


@pytest.mark.parametrize(
    ("function", "theirs"),
    [
        (weighted.auroc, metrics.roc_auc_score),
        (weighted.average_precision, metrics.average_precision_score),
        (ours, sensitivity),
    ],
    ids=["auroc", "average_precision", "sensitivity_at_specificity"],
)
def test_equal_to_scikit_learn_with_sample_weights(function: Callable, theirs: Callable) -> None:
    wanted = [theirs(TRUTH, SCORES, sample_weight=w) for w in WEIGHTS]
    np.testing.assert_allclose(function(SCORES, TRUTH, WEIGHTS), wanted, rtol=1e-12)


@pytest.mark.parametrize("function", [weighted.auroc, weighted.average_precision, ours])
def test_a_resample_of_one_class_is_not_defined(function: Callable) -> None:
    scores, truth = np.array([0.1, 0.2, 0.3]), np.array([0, 1, 1])
    values = function(scores, truth, np.array([[1.0, 1, 1], [0, 1, 1], [2, 0, 0], [0, 0, 0]]))
    assert values[0] == 1
    assert np.isnan(values[1:]).all()


def test_mean_leaves_undefined_values_out() -> None:
    values = weighted.mean(np.array([1.0, np.nan, 3.0]), np.array([[1.0, 5, 1], [3, 0, 1], [0, 1, 0]]))
    np.testing.assert_array_equal(values, [2.0, 1.5, np.nan])
