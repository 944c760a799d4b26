import math

import numpy as np
import pytest
from scipy.special import softmax

from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.privacy.released_metrics import noised
from fedimaging.privacy.tempering import SENSITIVITY, TEMPERATURES, logits_of, tempering_totals

KINDS = ("binary", "multiclass", "multilabel")
Scans = tuple[np.ndarray, np.ndarray, np.ndarray]


def scanned(kind: str, scans: int = 40, seed: int = 0, sharpness: float = 1.0) -> Scans:
    """Random scores (S, K), labels and patients with one to several scans each."""
    draw = np.random.default_rng(seed)
    classes = 2 if kind == "binary" else 3
    scores = draw.dirichlet(np.ones(classes) / sharpness, scans).astype(np.float32)
    labels = draw.integers(0, 2, (scans, classes)) if kind == "multilabel" else draw.integers(0, classes, scans)
    return scores, labels, draw.integers(0, scans // 3 + 1, scans)


def sums(scans: Scans, kind: str) -> np.ndarray:
    totals = tempering_totals(*scans, kind)
    assert totals.sensitivity == SENSITIVITY == math.sqrt(len(TEMPERATURES)) == 3.0
    return totals.arrays["tempering"]


def test_the_sums_are_the_slope_of_the_log_likelihood_where_no_scan_is_sure() -> None:
    scores = np.array([[0.6, 0.4], [0.45, 0.55], [0.3, 0.7]])  # logits at most 1 apart: every scan weighs 1
    labels, patient = np.array([0, 0, 1]), np.arange(3)

    def loss(inverse: float) -> float:
        return -float(np.log(softmax(np.log(scores) * inverse, axis=1))[np.arange(3), labels].sum())

    slopes = [(loss(1 / t + 1e-5) - loss(1 / t - 1e-5)) / 2e-5 for t in TEMPERATURES]
    np.testing.assert_allclose(sums((scores, labels, patient), "binary"), slopes, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharpness", [1.0, 20.0])
def test_no_patient_moves_the_sums_by_more_than_is_said(kind: str, sharpness: float) -> None:
    scores, labels, patient = scanned(kind, sharpness=sharpness)
    everyone, most = sums((scores, labels, patient), kind), 0.0
    for one in np.unique(patient):
        rest = patient != one
        most = max(most, float(np.linalg.norm(everyone - sums((scores[rest], labels[rest], patient[rest]), kind))))
    assert 0 < most <= SENSITIVITY * (1 + 1e-9)


def test_the_sensitivity_is_nearly_reached_by_a_patient_about_whom_the_model_is_surely_wrong() -> None:
    wrong = (np.array([[1.0, 1e-30]]), np.array([1]), np.array([0]))
    assert 0.98 * SENSITIVITY < np.linalg.norm(sums(wrong, "binary")) <= SENSITIVITY


@pytest.mark.parametrize("kind", KINDS)
def test_a_patient_with_many_scans_counts_once(kind: str) -> None:
    scores, labels, _ = scanned(kind, scans=1)
    once = sums((scores, labels, np.zeros(1)), kind)
    np.testing.assert_allclose(sums((np.repeat(scores, 7, axis=0), np.repeat(labels, 7, axis=0), np.zeros(7)), kind), once)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hotter_the_lower_and_nobody_gives_zeros(kind: str) -> None:
    scores, labels, patient = scanned(kind)
    assert (np.diff(sums((scores, labels, patient), kind)) <= 1e-9).all()
    assert sums((scores[:0], labels[:0], patient[:0]), kind).tolist() == [0.0] * len(TEMPERATURES)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_no_numbers_stay_within_the_bound(kind: str) -> None:
    scores, labels, patient = scanned(kind)
    scores[::2], scores[1::4] = np.nan, np.inf
    found = sums((scores, labels, patient), kind)
    assert np.isfinite(found).all()
    assert (np.abs(found) <= len(np.unique(patient))).all()


def test_logits_give_their_scores_again() -> None:
    scores = np.array([[0.9, 0.1], [0.25, 0.75]])
    np.testing.assert_allclose(softmax(logits_of(scores, "multiclass"), axis=1), scores)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits_of(scores, "multilabel"))), scores)
    assert np.isfinite(logits_of(np.array([[1.0, 0.0]]), "binary")).all()


def test_noise_of_the_stated_size_is_added() -> None:
    totals = tempering_totals(*scanned("binary"), "binary")
    found = [noised(totals, 4.0, SimulatedNoise(0, "a", 1), step=-1 - k) for k in range(200)]
    assert float(found[0]["noise_std"]) == 12.0
    moved = np.stack([one["tempering"] - totals.arrays["tempering"] for one in found])
    assert moved.std() == pytest.approx(12.0, rel=0.05)
