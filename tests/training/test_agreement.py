"""Bias and limits of agreement, against plain NumPy."""

import math

import numpy as np
import pytest

from fedimaging.training.agreement import agreement


def test_bias_and_limits_are_mean_and_standard_deviation_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 5, 60)
    measured = true + rng.normal(0.4, 0.3, 60)
    found = agreement(measured, true, np.arange(60), resamples=400, seed=0)
    differences = measured - true
    assert found.bias.value == pytest.approx(differences.mean())
    assert found.lower.value == pytest.approx(differences.mean() - 1.96 * differences.std(ddof=1))
    assert found.upper.value == pytest.approx(differences.mean() + 1.96 * differences.std(ddof=1))
    assert found.bias.low < 0.4 < found.bias.high
    assert found.upper.low < 0.4 + 1.96 * 0.3 < found.upper.high


def test_scans_without_a_measurement_are_left_out_and_nobody_gives_nothing() -> None:
    found = agreement(np.array([1.0, np.nan, 3.0]), np.array([0.0, 1.0, 2.0]), np.arange(3), resamples=100, seed=0)
    assert (found.bias.value, found.bias.n_patients) == (1.0, 2)
    empty = agreement(np.array([]), np.array([]), np.array([]), resamples=100, seed=0)
    assert math.isnan(empty.bias.value)
