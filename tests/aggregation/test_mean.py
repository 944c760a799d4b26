import numpy as np
import pytest

from fedimaging.aggregation.mean import StreamingMean, l2_norm
from fedimaging.errors import FedimagingError


def test_weighted_mean() -> None:
    mean = StreamingMean()
    mean.add(np.array([1.0, 0.0], np.float32), 1.0)
    mean.add(np.array([4.0, 8.0], np.float32), 3.0)
    found = mean.result()
    np.testing.assert_allclose(found, [13 / 4, 6.0])
    assert found.dtype == np.float64
    with pytest.raises(FedimagingError):  # the sum is over: what was the sum is the mean now
        mean.result()


def test_order_of_adding_is_the_only_thing_that_moves_the_last_bits() -> None:
    updates = [np.random.default_rng(i).normal(size=50).astype(np.float32) for i in range(7)]
    results = []
    for _ in range(2):
        mean = StreamingMean()
        for update in updates:
            mean.add(update)
        results.append(mean.result())
    assert np.array_equal(*results)


@pytest.mark.parametrize("bad", [np.array([np.nan, 0], np.float32), np.array([np.inf, 0], np.float32), np.zeros(3, np.float32)])
def test_bad_updates_are_refused_and_leave_the_mean_as_it_was(bad: np.ndarray) -> None:
    mean = StreamingMean()
    mean.add(np.array([2.0, 4.0], np.float32))
    with pytest.raises(FedimagingError):
        mean.add(bad)
    assert mean.count == 1
    np.testing.assert_array_equal(mean.result(), [2.0, 4.0])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(FedimagingError, match="weight"):
        StreamingMean().add(np.zeros(2, np.float32), weight)


def test_nothing_added_is_an_error() -> None:
    with pytest.raises(FedimagingError, match="no update"):
        StreamingMean().result()


@pytest.mark.parametrize("size", [0, 1, 2**15, 2 * 2**15 + 5])
def test_the_norm_of_a_vector_of_any_length(size: int) -> None:
    vector = np.full(size, 3.0, np.float32)
    assert l2_norm(vector) == pytest.approx(3.0 * size**0.5, rel=1e-12)
    assert np.isnan(l2_norm(np.append(vector, np.nan).astype(np.float32)))
