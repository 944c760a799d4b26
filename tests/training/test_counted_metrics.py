"""Metrics of noised totals: right without noise, with intervals that hold the truth with it, undefined in too much."""

import math

import numpy as np
import pytest
from sklearn import metrics

from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.privacy.released_metrics import noised, overlap_totals, ranking_totals
from fedimaging.results import Arrays
from fedimaging.training.counted_metrics import added_up, counted_metrics

TRUE_AUROC = 0.8556  # of scores N(0, 1) and N(1.5, 1)
QUIET = 1e-6  # a noise multiplier that moves nothing


def people(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Well calibrated scores (n, 2) and labels (n,), one scan a patient."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, n)
    scores = 1 / (1 + np.exp(-1.5 * (draw.normal(1.5 * labels, 1.0) - 0.75)))
    return np.stack([1 - scores, scores], 1), labels


def released(n: int, sigma: float, seed: int) -> Arrays:
    scores, labels = people(n, seed)
    return noised(ranking_totals(scores, labels, np.arange(n), "binary"), sigma, SimulatedNoise(0, "h", seed), -1)


def test_without_noise_they_are_the_metrics_but_for_the_bins() -> None:
    scores, labels = people(20_000, 0)
    found = counted_metrics(released(20_000, QUIET, 0), resamples=0)
    assert found["auroc"].value == pytest.approx(metrics.roc_auc_score(labels, scores[:, 1]), abs=0.008)
    assert found["average_precision"].value == pytest.approx(metrics.average_precision_score(labels, scores[:, 1]), abs=0.015)
    assert found["balanced_accuracy"].value == pytest.approx(metrics.balanced_accuracy_score(labels, scores[:, 1] > 0.5))
    false, true, _ = metrics.roc_curve(labels, scores[:, 1])
    assert found["sensitivity_at_90_specificity"].value == pytest.approx(true[false <= 0.1].max(), abs=0.03)
    assert found["auroc"].n_patients == 20_000
    assert math.isnan(found["auroc"].low)  # no resamples, no interval


def test_a_perfect_and_a_blind_model() -> None:
    labels = np.array([0, 1] * 50)
    for scores, expected in ((labels * 0.98 + 0.01, 1.0), (np.full(100, 0.3), 0.5)):
        totals = ranking_totals(np.stack([1 - scores, scores], 1), labels, np.arange(100), "binary")
        found = counted_metrics(noised(totals, QUIET, SimulatedNoise(0, "h", 1), -1), resamples=0)
        assert found["auroc"].value == pytest.approx(expected, abs=1e-4)
        assert found["balanced_accuracy"].value == pytest.approx(expected, abs=1e-4)


def test_noise_does_not_bias_the_auroc_and_intervals_hold_the_truth() -> None:
    found = [counted_metrics(released(400, 2.0, seed), resamples=200)["auroc"] for seed in range(40)]
    assert np.mean([one.value for one in found]) == pytest.approx(TRUE_AUROC, abs=0.02)
    held = np.mean([one.low <= TRUE_AUROC <= one.high for one in found])
    assert held >= 0.85
    quiet = counted_metrics(released(400, QUIET, 0), resamples=200)["auroc"]
    assert found[0].high - found[0].low > 1.3 * (quiet.high - quiet.low)


def test_hospitals_added_up_are_known_better_than_each() -> None:
    each = [released(300, 3.0, seed) for seed in range(4)]
    together = added_up(each)
    assert float(together["noise_std"]) == pytest.approx(6.0)
    np.testing.assert_allclose(together["cells"], np.sum([one["cells"] for one in each], axis=0), rtol=1e-6)
    alone, all_four = (counted_metrics(one, resamples=300)["auroc"] for one in (each[0], together))
    assert all_four.high - all_four.low < alone.high - alone.low
    assert all_four.n_patients == pytest.approx(1200, abs=100)


def test_a_class_lost_in_the_noise_gives_no_metric() -> None:
    scores = np.full((60, 2), 0.5)
    labels = np.zeros(60, int)
    labels[:2] = 1
    totals = ranking_totals(scores, labels, np.arange(60), "binary")
    found = counted_metrics(noised(totals, 4.0, SimulatedNoise(0, "h", 1), -1))
    assert math.isnan(found["auroc"].value)
    assert math.isnan(found["balanced_accuracy"].value)


def test_a_multiclass_balanced_accuracy_is_that_of_the_confusion() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 3000)
    scores = draw.dirichlet(np.ones(3), 3000) + np.eye(3)[labels] * 0.3
    totals = ranking_totals(scores / scores.sum(1, keepdims=True), labels, np.arange(3000), "multiclass")
    found = counted_metrics(noised(totals, QUIET, SimulatedNoise(0, "h", 1), -1), resamples=50)["balanced_accuracy"]
    assert found.value == pytest.approx(metrics.balanced_accuracy_score(labels, scores.argmax(1)), abs=1e-4)
    assert found.low < found.value < found.high


def test_dice_of_each_class_and_their_mean() -> None:
    dice = np.stack([np.tile([0.6, 0.8], 50), np.where(np.arange(100) < 90, np.nan, 0.5)], 1)
    quiet = counted_metrics(noised(overlap_totals(dice, np.arange(100)), QUIET, SimulatedNoise(0, "h", 1), -1))
    assert {name: round(one.value, 4) for name, one in quiet.items()} == {"dice": 0.6, "dice_1": 0.7, "dice_2": 0.5}
    assert quiet["dice_1"].low < 0.7 < quiet["dice_1"].high
    loud = counted_metrics(noised(overlap_totals(dice, np.arange(100)), 8.0, SimulatedNoise(0, "h", 1), -1))
    assert math.isnan(loud["dice_2"].value)  # ten patients, noise of 16
    assert 0 <= loud["dice_1"].value <= 1
