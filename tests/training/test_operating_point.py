"""A threshold keeps what it was chosen for, and its rates are those of a table counted by hand."""

import math

import numpy as np
import pytest

from fedimaging.training.operating_point import choose_threshold, rates_at, rates_of_counts

SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
TRUTH = np.array([0, 0, 1, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(("aim", "target", "threshold"), [
    ("sensitivity", 1.0, 0.25), ("sensitivity", 0.75, 0.55), ("sensitivity", 0.7, 0.55), ("sensitivity", 0.25, 0.75),
    ("specificity", 1.0, 0.55), ("specificity", 0.75, 0.45), ("specificity", 0.5, 0.25),
])  # fmt: skip
def test_the_threshold_keeps_its_aim_and_gives_up_no_more_than_it_must(aim: str, target: float, threshold: float) -> None:
    found = choose_threshold(SCORES, TRUTH, aim=aim, target=target)
    assert found == pytest.approx(threshold)
    assert found is not None
    rates = rates_at(SCORES, TRUTH, np.arange(8), found, resamples=100, seed=0)
    assert rates[aim].value >= target


def test_without_the_class_that_is_aimed_at_there_is_no_threshold() -> None:
    assert choose_threshold(SCORES, np.zeros(8), aim="sensitivity", target=0.9) is None
    assert choose_threshold(SCORES, np.ones(8), aim="specificity", target=0.9) is None


def test_equal_scores_stay_on_one_side() -> None:
    scores, truth = np.array([0.5, 0.5, 0.5, 0.9]), np.array([0, 1, 0, 1])
    assert choose_threshold(scores, truth, aim="sensitivity", target=0.6) == 0.5  # 0.9 alone would be half of them
    threshold = choose_threshold(scores, truth, aim="specificity", target=0.5)
    assert threshold == pytest.approx(0.7)


def test_rates_are_those_of_the_table() -> None:
    rates = rates_at(SCORES, TRUTH, np.arange(8), 0.35, resamples=400, seed=0)
    assert {name: one.value for name, one in rates.items()} == {
        "sensitivity": 0.75, "specificity": 0.5, "ppv": 0.6, "npv": pytest.approx(2 / 3)}  # fmt: skip
    assert {name: one.n_patients for name, one in rates.items()} == {"sensitivity": 4, "specificity": 4, "ppv": 5, "npv": 3}
    assert all(0 <= one.low < one.value < one.high <= 1 for one in rates.values())
    assert rates_of_counts((3, 2, 2, 1)) == {name: pytest.approx(one.value) for name, one in rates.items()}


def test_a_rate_of_one_has_the_exact_limit_for_its_number_of_patients() -> None:
    scores, truth = np.array([0.9, 0.9, 0.9, 0.8, 0.1]), np.array([1, 1, 1, 1, 0])
    patients = np.array([0, 0, 1, 2, 3])
    rates = rates_at(scores, truth, patients, 0.5, resamples=100, seed=0)
    assert (rates["sensitivity"].value, rates["sensitivity"].high, rates["sensitivity"].n_patients) == (1.0, 1.0, 3)
    assert rates["sensitivity"].low == pytest.approx(0.025 ** (1 / 3))
    nobody = rates_at(scores, truth, patients, 0.95, resamples=100, seed=0)
    assert (nobody["sensitivity"].low, nobody["sensitivity"].high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 3)))
    assert math.isnan(nobody["ppv"].value)
    assert nobody["ppv"].n_patients == 0
