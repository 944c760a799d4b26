"""How far apart groups lie: planted differences are found, absent ones are not."""

import numpy as np
import pytest

from fedimaging.training import weighted
from fedimaging.training.group_gap import GroupGap, group_gap


def _gap(values: np.ndarray, group: np.ndarray, patients: np.ndarray | None = None, *, lower: bool = False) -> GroupGap:
    ids = np.arange(len(values)) if patients is None else patients
    found = group_gap(
        lambda w: weighted.mean(values, w), group, ids, lower_is_better=lower, resamples=400, seed=0
    )
    assert found is not None
    return found


def test_a_planted_difference_is_found_with_its_size_and_the_groups() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 40)
    found = _gap(np.array([0.9, 0.8, 0.5])[group] + rng.normal(0, 0.05, 120), group)
    assert (found.best, found.worst) == (0, 2)
    assert found.gap.value == pytest.approx(0.4, abs=0.03)
    assert 0.35 < found.gap.low < found.gap.value < found.gap.high < 0.45
    assert found.p_value == 1 / 401  # no deal of 400 came near
    assert found.gap.n_patients == 120


def test_where_lower_is_better_the_lowest_is_best() -> None:
    group = np.array([0, 0, 1, 1])
    found = _gap(np.array([1.0, 1.0, 3.0, 3.0]), group, lower=True)
    assert (found.best, found.worst, found.gap.value) == (0, 1, 2.0)


def test_groups_that_differ_by_chance_alone_have_p_values_spread_over_0_to_1() -> None:
    rng = np.random.default_rng(1)
    p_values = [_gap(rng.normal(size=60), np.repeat([0, 1, 2], 20)).p_value for _ in range(40)]
    assert sum(p < 0.1 for p in p_values) <= 9
    assert max(p_values) > 0.7


def test_a_patients_scans_are_dealt_together() -> None:
    """Ten scans of each of two patients tell no more than two patients: either deal of the two groups is as far apart."""
    values, patients = np.repeat([0.0, 1.0], 10), np.repeat([0, 1], 10)
    assert _gap(values, patients.copy(), patients).p_value == 1.0


def test_scans_of_no_group_and_groups_without_a_value_are_left_out() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0, 9.0, np.nan, np.nan])
    group = np.array([0, 0, 1, 1, -1, 2, 2])
    found = _gap(values, group)
    assert (found.gap.value, found.gap.n_patients) == (1.0, 4)
    assert group_gap(
        lambda w: weighted.mean(values, w), np.array([0, 0, -1, -1, -1, 2, 2]), np.arange(7), lower_is_better=False,
        resamples=100, seed=0,
    ) is None
