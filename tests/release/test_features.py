"""Numbers of an image, checked by hand."""

import numpy as np
import pytest

from fedimaging.release.features import INPUT_FEATURES, feature_range, input_features


def feature(images: np.ndarray, name: str, intensity: str = "unit") -> np.ndarray:
    return input_features(images, intensity)[:, INPUT_FEATURES.index(name)]


def test_a_flat_image_has_no_spread_and_a_ramp_has_its_slope() -> None:
    flat = np.full((1, 1, 8, 8), 0.25, np.float32)
    ramp = np.tile(np.arange(8, dtype=np.float32) / 8, (1, 1, 8, 1))
    images = np.concatenate([flat, ramp])
    assert feature(images, "mean").tolist() == [0.25, 3.5 / 8]
    assert feature(images, "deviation")[0] == 0
    assert feature(images, "sharpness") == pytest.approx([0, 1 / 8])
    assert feature(images, "entropy") == pytest.approx([0, 3])  # eight values, equally often
    assert feature(images, "p50") == pytest.approx([0.25, 3.5 / 8])


def test_volumes_and_colours_are_taken_whole() -> None:
    volume = np.zeros((2, 1, 4, 4, 4), np.float32)
    volume[1, 0, :, :, 2:] = 1
    assert feature(volume, "mean").tolist() == [0, 0.5]
    assert feature(volume, "sharpness") == pytest.approx([0, 0.25])  # half a step in two planes of four
    assert input_features(np.zeros((3, 3, 4, 4), np.float32), "zscore").shape == (3, 7)


@pytest.mark.parametrize("intensity", ["unit", "percentile", "zscore"])
def test_noise_lies_within_the_public_ranges(intensity: str) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 1, 16, 16)) if intensity == "zscore" else rng.random((4, 1, 16, 16))
    found = input_features(images, intensity)
    for k, name in enumerate(INPUT_FEATURES):
        low, high = feature_range(name, intensity)
        assert low <= found[:, k].min() <= found[:, k].max() <= high
