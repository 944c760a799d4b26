import numpy as np
import pytest

from fedimaging.aggregation.secure_sum import FixedPoint
from fedimaging.errors import FedimagingError


def test_a_value_comes_back_to_half_a_step() -> None:
    grid = FixedPoint(limit=1.0, bits=8)
    values = np.array([-1.0, -0.5, 0.0, 0.003, 0.5, 1.0])
    back = grid.decode(grid.encode(values))
    assert grid.step == 2 / 256
    np.testing.assert_allclose(back, [-1.0, -0.5, 0.0, 0.0, 0.5, 1.0])
    assert np.abs(back - values).max() <= grid.step / 2


def test_a_sum_is_off_by_half_a_step_a_value_and_wraps_only_past_the_stated_number() -> None:
    grid = FixedPoint(limit=3.0, bits=20)
    draw = np.random.default_rng(0)
    values = draw.uniform(-3, 3, (100, 500))
    total = sum(grid.encode(row) for row in values)
    assert np.abs(grid.decode(total) - values.sum(0)).max() <= 100 * grid.step / 2
    most = grid.most_values
    extreme = grid.encode(np.array([3.0, -3.0])) * np.uint32(most)
    np.testing.assert_allclose(grid.decode(extreme), [3.0 * most, -3.0 * most])
    assert most == 4095


@pytest.mark.parametrize("bad", [np.array([1.1]), np.array([-1.1]), np.array([np.nan]), np.array([np.inf])])
def test_what_does_not_fit_is_refused_and_not_cut_off(bad: np.ndarray) -> None:
    with pytest.raises(FedimagingError):
        FixedPoint(limit=1.0).encode(bad)


@pytest.mark.parametrize(("limit", "bits"), [(0.0, 24), (np.inf, 24), (1.0, 1), (1.0, 31)])
def test_a_grid_that_cannot_be_is_refused(limit: float, bits: int) -> None:
    with pytest.raises(FedimagingError, match=r"limit|bits"):
        FixedPoint(limit, bits)


def test_nothing_is_a_vector_too() -> None:
    assert FixedPoint(1.0).decode(FixedPoint(1.0).encode(np.zeros(0))).shape == (0,)
