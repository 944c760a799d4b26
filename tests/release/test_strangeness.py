"""Distances are calibrated on patients who were left out: few false alarms, and what is far is found."""

import json

import numpy as np
import pytest

from fedimaging.release.strangeness import FLAG_ABOVE, MOST_DIMENSIONS, fitted, quantiles, together


@pytest.mark.parametrize("dimensions", [1, 7, 200])
def test_few_false_alarms_and_far_images_are_found(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    mix = rng.standard_normal((dimensions, dimensions))
    reference = fitted(rng.standard_normal((300, dimensions)) @ mix, np.arange(300), 10)
    assert reference is not None
    assert len(reference["mean"]) == min(dimensions, MOST_DIMENSIONS)
    alike = quantiles(reference, rng.standard_normal((2000, dimensions)) @ mix)
    assert (alike > FLAG_ABOVE).mean() < 0.02
    assert 0.3 < np.median(alike) < 0.7
    far = quantiles(reference, 20 * rng.standard_normal((200, dimensions)) @ mix)
    assert (far > FLAG_ABOVE).mean() > (0.9 if dimensions > 1 else 0.2)


def test_two_quantiles_together_are_no_stranger_than_one() -> None:
    found = together([np.array([0.999, 0.3, 0.5]), np.array([0.2, 0.4, 0.9])])
    assert found == pytest.approx([0.998, 0.0, 0.8])
    assert together([np.array([0.7])]) == pytest.approx([0.7])


def test_a_feature_that_never_changes_makes_any_change_strange() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.standard_normal(100), np.full(100, 3.0)])
    reference = fitted(values, np.arange(100), 10)
    assert reference is not None
    found = quantiles(reference, np.array([[0.0, 3.0], [0.0, 4.0]]))
    assert found[0] < FLAG_ABOVE < found[1]


def test_too_few_patients_give_no_reference_however_many_images() -> None:
    values = np.random.default_rng(0).standard_normal((500, 3))
    assert fitted(values, np.arange(500) % 9, 10) is None
    assert fitted(values, np.arange(500) % 10, 10) is not None
    assert fitted(values[:0], np.arange(0), 10) is None


def test_what_is_kept_is_json_of_aggregates() -> None:
    values = np.random.default_rng(0).standard_normal((50, 3))
    reference = fitted(values, np.arange(50), 10)
    assert json.loads(json.dumps(reference)) == reference
    assert reference is not None
    assert set(reference) == {"dimensions", "mean", "covariance", "log_distance_mean", "log_distance_deviation"}
    assert reference["mean"] == pytest.approx(values.mean(0), rel=1e-6)
