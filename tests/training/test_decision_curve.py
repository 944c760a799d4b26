"""Net benefit against values worked out by hand."""

import numpy as np
import pytest

from fedimaging.training.decision_curve import decision_curve


def test_net_benefit_is_that_of_the_formula() -> None:
    scores, truth = np.array([0.9, 0.6, 0.3, 0.1]), np.array([1, 0, 1, 0])
    curve = decision_curve(scores, truth, np.arange(4), thresholds=(0.2, 0.5, 0.8), resamples=200, seed=0)
    # at 0.2: two true, one false alarm; at 0.5: one and one; at 0.8: one and none
    assert [one.value for one in curve.model] == pytest.approx([2 / 4 - 1 / 4 * 0.25, 1 / 4 - 1 / 4 * 1, 1 / 4])
    assert curve.treat_all == pytest.approx([0.5 - 0.5 * 0.25, 0.0, 0.5 - 0.5 * 4])
    assert all(one.low <= one.value <= one.high for one in curve.model)


def test_a_model_that_knows_the_truth_gains_the_prevalence_at_every_threshold() -> None:
    truth = (np.arange(40) < 12).astype(int)
    curve = decision_curve(truth.astype(float), truth, np.arange(40), resamples=100, seed=0)
    assert [one.value for one in curve.model] == pytest.approx([0.3] * len(curve.thresholds))


def test_true_probabilities_are_never_worse_than_acting_on_everybody_or_nobody() -> None:
    """Beyond sampling error: with 20,000 people it is small."""
    rng = np.random.default_rng(0)
    risk = rng.beta(1, 3, 20_000)
    truth = (rng.random(20_000) < risk).astype(int)
    curve = decision_curve(risk, truth, np.arange(20_000), thresholds=(0.05, 0.1, 0.3, 0.6), resamples=100, seed=0)
    for model, everybody in zip(curve.model, curve.treat_all, strict=True):
        assert model.value > max(everybody, 0.0) - 0.002
