"""The measures by which maps are judged, on maps whose answer is known."""

import numpy as np
import pytest

from fedimaging.training.explain_sanity import likeness, top_share


def test_the_share_is_that_of_the_strongest_pixels_inside() -> None:
    values, mask = np.zeros((10, 10)), np.zeros((10, 10))
    values[0, :5] = [5, 4, 3, 2, 1]
    mask[0, :2] = 1
    assert top_share(values, mask) == pytest.approx(9 / 15)
    assert top_share(values, mask, top=0.02) == 1
    assert top_share(values, 1 - mask) == pytest.approx(6 / 15)


def test_a_map_without_an_answer_counts_as_chance() -> None:
    mask = np.zeros((10, 10))
    mask[:2] = 1
    assert top_share(np.zeros((10, 10)), mask) == pytest.approx(0.2)
    assert top_share(np.ones((10, 10)), mask) == pytest.approx(0.2)


def test_likeness_is_rank_correlation() -> None:
    values = np.arange(16.0).reshape(4, 4)
    assert likeness(values, values**3) == pytest.approx(1)
    assert likeness(values, -values) == pytest.approx(-1)
    assert np.isnan(likeness(values, np.ones((4, 4))))
