import math

import numpy as np
import pytest

from fedimaging.errors import PrivacyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.gaussian import gaussian_epsilon
from fedimaging.privacy.noise import SecureNoise, SimulatedNoise
from fedimaging.privacy.released_metrics import (
    BINS,
    EDGES,
    PatientTotals,
    coarsened,
    noised,
    overlap_totals,
    ranking_totals,
    release_charge,
    totals_shapes,
)

KINDS = ("binary", "multiclass", "multilabel")


def scanned(kind: str, scans: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random scores (S, K), labels and patients with one to several scans each."""
    draw = np.random.default_rng(seed)
    classes = 2 if kind == "binary" else 3
    scores = draw.dirichlet(np.ones(classes), scans)
    labels = draw.integers(0, 2, (scans, classes)) if kind == "multilabel" else draw.integers(0, classes, scans)
    return scores, labels, draw.integers(0, scans // 3 + 1, scans)


def moved(one: PatientTotals, other: PatientTotals) -> float:
    return math.sqrt(sum(float(((one.arrays[name] - other.arrays[name]) ** 2).sum()) for name in one.arrays))


def test_a_patient_weighs_one_in_the_cells_of_score_and_truth() -> None:
    scores = np.array([0.5, 0.51, 0.999, 0.001])
    pairs = np.stack([1 - scores, scores], axis=1)
    totals = ranking_totals(pairs, np.array([0, 1, 1, 1]), np.array([7, 8, 9, 9]), "binary")
    cells = totals.arrays["cells"]
    assert totals.sensitivity == 1.0
    assert cells.shape == (1, 2, BINS)
    assert EDGES[BINS // 2 - 1] == 0.5
    assert cells[0, 0].nonzero()[0].tolist() == [BINS // 2 - 1]  # a score of 0.5 is no positive
    assert cells[0, 1, [0, BINS // 2, BINS - 1]].tolist() == [0.5, 1.0, 0.5]  # patient 9 has two scans
    assert cells.sum() == pytest.approx(3.0)


def test_a_confusion_of_patients_stands_beside_the_classes_one_against_the_rest() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    totals = ranking_totals(scores, np.array([0, 2, 1]), np.array([0, 1, 1]), "multiclass")
    assert totals.arrays["confusion"].tolist() == [[1, 0, 0], [0, 0.5, 0], [0, 0.5, 0]]
    assert totals.arrays["cells"].sum((1, 2)).tolist() == [2, 2, 2]
    assert totals.sensitivity == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_told_beforehand(kind: str) -> None:
    scores, labels, patient = scanned(kind)
    released = noised(ranking_totals(scores, labels, patient, kind), 1.0, SimulatedNoise(0, "a", 1), step=-1)
    assert {name: array.shape for name, array in released.items()} == totals_shapes(kind, scores.shape[1])
    overlap = noised(overlap_totals(np.zeros((3, 2)), np.arange(3)), 1.0, SimulatedNoise(0, "a", 1), step=-1)
    assert {name: array.shape for name, array in overlap.items()} == totals_shapes("segmentation", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_patient_moves_the_totals_by_more_than_is_said(kind: str) -> None:
    scores, labels, patient = scanned(kind)
    everyone = ranking_totals(scores, labels, patient, kind)
    for one in np.unique(patient):
        rest = patient != one
        assert moved(everyone, ranking_totals(scores[rest], labels[rest], patient[rest], kind)) <= everyone.sensitivity + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_sensitivity_is_reached_by_a_patient_of_one_scan_and_by_one_of_many(kind: str) -> None:
    scores, labels, _ = scanned(kind, scans=1)
    for scans in (1, 5):
        totals = ranking_totals(scores.repeat(scans, 0), labels.repeat(scans, 0), np.zeros(scans), kind)
        assert moved(totals, ranking_totals(scores[:0], labels[:0], np.zeros(0), kind)) == pytest.approx(totals.sensitivity)


def test_dice_is_summed_over_patients_and_a_class_that_is_nowhere_counts_nobody() -> None:
    dice = np.array([[0.5, np.nan], [0.75, np.nan], [1.0, 0.25]])
    totals = overlap_totals(dice, np.array([0, 0, 1]))
    assert totals.arrays["overlap"].tolist() == [[1.625, 2.0], [0.25, 1.0]]
    assert totals.sensitivity == 2.0


def test_no_patient_moves_the_dice_by_more_than_is_said_whatever_it_is() -> None:
    dice = np.array([[1.0, 1.0], [np.nan, np.inf], [7.0, -7.0], [0.2, np.nan]])
    patient = np.array([0, 1, 2, 2])
    everyone = overlap_totals(dice, patient)
    for one in range(3):
        rest = patient != one
        assert moved(everyone, overlap_totals(dice[rest], patient[rest])) <= everyone.sensitivity
    assert moved(overlap_totals(dice[:1], patient[:1]), overlap_totals(dice[:0], patient[:0])) == everyone.sensitivity


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_move_no_more_than_others(bad: float) -> None:
    scores = np.array([[0.5, 0.5], [bad, bad]])
    totals = ranking_totals(scores, np.array([0, 1]), np.array([0, 1]), "binary")
    assert totals.arrays["cells"].sum() == 2.0


def test_noise_has_the_stated_size_and_never_shares_numbers_with_training() -> None:
    totals = PatientTotals({"cells": np.zeros((50, 2, 200)), "confusion": np.zeros((60, 60))}, sensitivity=2.0)
    source = SimulatedNoise(0, "hospital_01", 1)
    released = noised(totals, 3.0, source, step=-1)
    assert float(released["noise_std"]) == 6.0
    assert released["cells"].std() == pytest.approx(6.0, rel=0.02)
    assert released["confusion"].std() == pytest.approx(6.0, rel=0.05)
    assert abs(released["cells"].mean()) < 0.2
    assert not totals.arrays["cells"].any()  # the totals themselves are left as they were
    again, training = noised(totals, 3.0, source, step=-1), noised(totals, 3.0, source, step=0)
    assert np.array_equal(released["cells"], again["cells"])
    assert abs(np.corrcoef(released["cells"].ravel(), training["cells"].ravel())[0, 1]) < 0.03
    secure = noised(totals, 3.0, SecureNoise(), step=-1)
    assert secure["cells"].std() == pytest.approx(6.0, rel=0.05)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_a_release_without_noise_is_refused(sigma: float) -> None:
    with pytest.raises(PrivacyError, match="evaluation_noise_multiplier"):
        noised(PatientTotals({"cells": np.zeros(3)}, 1.0), sigma, SimulatedNoise(0, "a", 1), step=-1)


def test_ten_releases_cost_what_ten_gaussians_cost() -> None:
    spent = epsilon([release_charge(4.0)] * 10, 1e-5)
    assert spent == pytest.approx(gaussian_epsilon(math.sqrt(10) / 4, 1e-5), abs=3e-3)
    assert 3.3 < spent < 3.4
    assert 0.9 < epsilon([release_charge(4.0)], 1e-5) < 0.95


def test_coarse_figures_lie_on_the_grid() -> None:
    found = coarsened({"auroc": 0.8749, "dice": 0.9, "loss": math.nan}, 0.05)
    assert found["auroc"] == pytest.approx(0.85)
    assert found["dice"] == pytest.approx(0.9)
    assert math.isnan(found["loss"])
