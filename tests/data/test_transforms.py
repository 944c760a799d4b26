"""Sizes, spacings and intensities, on numbers small enough to do by hand."""

import numpy as np
import pytest

from fedimaging.data.scan import Scan
from fedimaging.data.spec import DataSpec
from fedimaging.data.transforms import prepare_image, prepare_mask
from fedimaging.errors import DataError


def flat(**given: object) -> DataSpec:
    return DataSpec(**{"source": "manifest", "path": "x", "image_size": (4, 4)} | given)  # type: ignore[arg-type]


def solid(**given: object) -> DataSpec:
    return flat(**{"image_size": (4, 4, 4)} | given)


def test_eight_bits_are_divided_by_255() -> None:
    image, _ = prepare_image(Scan(np.full((1, 4, 4), 51, np.uint8), 255.0), flat())
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, 0.2)


def test_other_numbers_run_from_least_to_greatest() -> None:
    ramp = np.arange(16, dtype=np.int16).reshape(1, 4, 4) - 1000
    image, _ = prepare_image(Scan(ramp), flat())
    np.testing.assert_allclose(image.ravel(), np.arange(16) / 15, rtol=1e-6)


def test_zscore_has_mean_zero_and_percentile_is_clipped() -> None:
    ramp = np.arange(16, dtype=np.float32).reshape(1, 4, 4) ** 3
    z, _ = prepare_image(Scan(ramp), flat(intensity="zscore"))
    assert abs(z.mean()) < 1e-6
    assert abs(z.std() - 1) < 1e-6
    p, _ = prepare_image(Scan(ramp), flat(intensity="percentile"))
    assert (p.min(), p.max()) == (0, 1)


@pytest.mark.parametrize("intensity", ["unit", "zscore", "percentile"])
def test_a_blank_scan_stays_finite(intensity: str) -> None:
    image, _ = prepare_image(Scan(np.full((1, 4, 4), 7.0)), flat(intensity=intensity))
    np.testing.assert_array_equal(image, 0)


def test_the_channels_of_a_volume_have_their_own_range_colours_one() -> None:
    volume = np.stack([np.linspace(0, 1, 64), np.linspace(0, 1000, 64)]).reshape(2, 4, 4, 4)
    image, _ = prepare_image(Scan(volume), solid(channels=2))
    np.testing.assert_allclose(image[0], image[1], atol=1e-6)
    colours = np.stack([np.full((4, 4), value, np.uint16) for value in (0, 500, 1000)])
    image, _ = prepare_image(Scan(colours), flat(channels=3))
    assert image[:, 0, 0].tolist() == [0, 0.5, 1]


def test_a_picture_keeps_its_aspect_and_is_padded() -> None:
    image, spacing = prepare_image(Scan(np.full((1, 8, 4), 255, np.uint8), 255.0, (0.5, 0.5)), flat())
    assert image[0].tolist() == [[0, 1, 1, 0]] * 4
    assert spacing == (1.0, 1.0)


def test_padding_under_zscore_is_the_darkest_value() -> None:
    image, _ = prepare_image(Scan(np.arange(8, dtype=np.uint8).reshape(1, 4, 2), 255.0), flat(intensity="zscore"))
    assert image[0, 0, 0] == image.min()


def test_shrinking_a_picture_averages() -> None:
    board = np.indices((8, 8)).sum(0) % 2 * 255
    image, _ = prepare_image(Scan(board[None].astype(np.uint8), 255.0), flat())
    np.testing.assert_allclose(image, 0.5, atol=0.02)


def test_grey_and_colour_convert_into_each_other() -> None:
    white = np.full((3, 4, 4), 255, np.uint8)
    np.testing.assert_allclose(prepare_image(Scan(white, 255.0), flat())[0], 1, rtol=1e-6)
    assert prepare_image(Scan(white[:1], 255.0), flat(channels=3))[0].shape == (3, 4, 4)
    with pytest.raises(DataError, match=r"has 3 channels but data.channels=2"):
        prepare_image(Scan(white, 255.0), flat(channels=2))


def test_volumes_are_resampled_then_cropped_and_padded_about_the_centre() -> None:
    volume = np.zeros((1, 4, 6, 4), np.float32)
    volume[0, :, 1:5, :] = 1
    spec = solid(image_size=(6, 4, 6), spacing_mm=(1, 1, 1))
    image, spacing = prepare_image(Scan(volume, 1.0, (2.0, 1.0, 1.0)), spec)
    assert image.shape == (1, 6, 4, 6)
    assert spacing == (1, 1, 1)
    np.testing.assert_array_equal(image[0, :, :, 1:5], 1)  # 8 across cropped to 6, the four middle rows of 6
    np.testing.assert_array_equal(image[0, :, :, [0, 5]], 0)  # 4 deep padded to 6


def test_resampling_keeps_the_place_of_things() -> None:
    x = np.linspace(0.5, 9.5, 10, dtype=np.float32)
    volume = np.broadcast_to(x[:, None, None], (10, 4, 4))[None]
    image, _ = prepare_image(Scan(volume, 1.0, (1.0, 1.0, 1.0)), solid(image_size=(20, 4, 4), spacing_mm=(0.5, 1, 1)))
    np.testing.assert_allclose(image[0, 2:-2, 0, 0], np.arange(1.25, 9, 0.5), atol=1e-5)


def test_spacing_is_needed_where_the_study_asks_for_it() -> None:
    with pytest.raises(DataError, match="no voxel spacing"):
        prepare_image(Scan(np.zeros((1, 4, 4, 4))), solid(spacing_mm=(1, 1, 1)))


def test_masks_keep_their_classes() -> None:
    classes = np.zeros((1, 6, 6, 6), np.uint8)
    classes[0, :3] = 7
    mask = prepare_mask(Scan(classes, None, (1.0, 1.0, 1.0)), solid(spacing_mm=(1.5, 1.5, 1.5)))
    assert mask.dtype == np.uint8
    assert mask.shape == (4, 4, 4)
    assert set(np.unique(mask)) == {0, 7}
    assert (mask[:2] == 7).all()
    picture = prepare_mask(Scan(np.full((1, 9, 9), 3, np.uint8)), flat())
    assert (picture == 3).all()


def test_dimensions_must_be_those_of_the_study() -> None:
    with pytest.raises(DataError, match="is a picture"):
        prepare_image(Scan(np.zeros((1, 4, 4))), solid())
    with pytest.raises(DataError, match="is a volume"):
        prepare_image(Scan(np.zeros((1, 4, 4, 2))), flat())


def test_a_volume_one_slice_thick_is_a_picture_seen_as_usual() -> None:
    volume = np.zeros((1, 4, 4, 1), np.uint8)
    volume[0, 3, 3, 0] = 255  # right, front
    image, spacing = prepare_image(Scan(volume, 255.0, (2.0, 3.0, 9.0)), flat())
    assert image[0, 0, 0] == 1  # the patient's right on the left, the front up
    assert spacing == (3.0, 2.0)
