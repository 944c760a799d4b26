"""LiRA on a planted leak, and on none."""

import numpy as np
import pytest

from fedimaging.audits.lira import confidences, offline_scores
from fedimaging.audits.membership import auc
from fedimaging.errors import PrivacyError


def planted(leak: float) -> tuple[np.ndarray, np.ndarray]:
    """Patients of very different difficulty; those in training are `leak` deviations surer."""
    rng = np.random.default_rng(1)
    hard = 10 * rng.standard_normal(600)
    member = np.arange(600) < 300
    inside = np.stack([rng.permutation(600) < 300 for _ in range(8)])
    inside[1::2] = ~inside[::2]
    references = hard + rng.standard_normal((8, 600)) + leak * inside
    scores = offline_scores(hard + rng.standard_normal(600) + leak * member, references, ~inside)
    return scores[member], scores[~member]


def test_a_leak_hidden_in_difficulty_is_found_and_nothing_where_there_is_none() -> None:
    # The score's deviation is sqrt(1 + 1/4): four of eight models are without a patient.
    assert auc(*planted(2.0)).value == pytest.approx(0.897, abs=0.03)
    none = auc(*planted(0.0))
    assert none.low < 0.5 < none.high


def test_confidence_is_the_logit_of_the_right_class() -> None:
    p = np.array([0.1, 0.5, 0.999])
    assert confidences(-np.log(p)) == pytest.approx(np.log(p / (1 - p)))
    assert np.isfinite(confidences(np.array([0.0, 1e4]))).all()


def test_scores_are_in_pooled_deviations_of_the_models_without() -> None:
    references, without = np.array([[1.0, 9.0], [3.0, 2.0], [7.0, 4.0]]), np.array([[True, False], [True, True], [False, True]])
    assert offline_scores(np.array([4.0, 3.0]), references, without) == pytest.approx([2 / np.sqrt(2), 0.0])


def test_a_unit_in_every_model_is_refused() -> None:
    with pytest.raises(PrivacyError, match="train more shadows"):
        offline_scores(np.zeros(2), np.zeros((2, 2)), np.array([[True, False], [True, False]]))
