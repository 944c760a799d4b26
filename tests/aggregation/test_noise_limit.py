"""How far the server follows a noisy mean: exact small numbers."""

import pytest

from fedimaging.aggregation.noise_limit import update_scale

NOISE = {"a": 3.0, "b": 4.0, "c": 100.0}
EQUAL = {"a": 1.0, "b": 1.0, "c": 1.0}


def test_the_noise_of_the_mean_is_brought_to_the_limit() -> None:
    assert update_scale(1.0, NOISE, EQUAL, ["a", "b"]) == pytest.approx(1 / 2.5)  # sqrt(9 + 16) / 2
    assert update_scale(1.0, NOISE, {"a": 4.0, "b": 3.0}, ["a", "b"]) == pytest.approx(7 / (12 * 2**0.5))
    assert update_scale(1.0, NOISE, EQUAL, ["b"]) == pytest.approx(0.25)


def test_below_the_limit_nothing_changes() -> None:
    assert update_scale(2.5, NOISE, EQUAL, ["a", "b"]) == 1.0
    assert update_scale(7.0, NOISE, EQUAL, ["a", "b"]) == 1.0


def test_without_a_limit_or_without_noise_nothing_changes() -> None:
    assert update_scale(None, NOISE, EQUAL, ["a"]) == 1.0
    assert update_scale(1e-9, {}, EQUAL, ["a"]) == 1.0
    assert update_scale(1e-9, {"a": 0.0}, EQUAL, ["a"]) == 1.0
