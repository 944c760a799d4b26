"""Volumes turned to RAS, and masks held against their images."""

import numpy as np
import pytest

from fedimaging.data.scan import Scan, check_pair, ras_volume
from fedimaging.errors import DataError


def test_axes_are_swapped_and_mirrored_to_ras() -> None:
    volume = np.arange(24).reshape(1, 2, 3, 4)  # axes: to the head, to the left, to the back
    affine = np.array([[0, -2.0, 0, 0], [0, 0, -3.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    scan = ras_volume(volume, affine)
    assert scan.pixels.shape == (1, 3, 4, 2)
    assert scan.spacing_mm == (2, 3, 5)
    assert scan.orientation == "SLP"
    np.testing.assert_array_equal(scan.pixels[0], volume[0].transpose(1, 2, 0)[::-1, ::-1])
    assert scan.affine is not None
    np.testing.assert_array_equal(np.diag(scan.affine), [2, 3, 5, 1])
    np.testing.assert_array_equal(scan.affine[:3, 3], [-4, -9, 0])


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_axes_that_span_nothing_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="span no volume"):
        ras_volume(np.zeros((1, 2, 2, 2)), np.diag([1, 1, value, 1]))


def test_a_mask_of_another_shape_or_place_is_refused() -> None:
    image = ras_volume(np.zeros((1, 4, 4, 4)), np.eye(4))
    with pytest.raises(DataError, match="has shape 4x4x3 but the image 4x4x4"):
        check_pair(image, ras_volume(np.zeros((1, 4, 4, 3)), np.eye(4)))
    moved = np.eye(4)
    moved[0, 3] = 2
    with pytest.raises(DataError, match=r"2.0 mm off"):
        check_pair(image, ras_volume(np.zeros((1, 4, 4, 4)), moved))
    moved[0, 3] = 0.01
    check_pair(image, ras_volume(np.zeros((1, 4, 4, 4)), moved))
    check_pair(image, Scan(np.zeros((1, 4, 4, 4))))
