"""The contact sheet is a PNG of the asked scans, fairly chosen, with outlines."""

import io

import numpy as np
from PIL import Image

from fedimaging.data.sheet import axial_slice, contact_sheet

from .making import dataset

AMBER = (255, 176, 0)


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_masks_are_outlined() -> None:
    masks = np.zeros((1, 16, 16), np.uint8)
    masks[0, 4:12, 4:12] = 1
    data = dataset(["a"], images=np.zeros((1, 1, 16, 16), np.float32), masks=masks)
    picture = opened(contact_sheet(data, 4))
    amber = (picture == AMBER).all(axis=2)
    assert amber.sum() == 4 * 64 - 4  # 8 pixels enlarged 8 times: a frame one pixel wide
    plain = dataset(["a"], images=np.zeros((1, 1, 16, 16), np.float32))
    assert not (opened(contact_sheet(plain, 4)) == AMBER).all(axis=2).any()


def test_every_hospital_is_shown_and_patients_before_second_scans() -> None:
    images = np.zeros((10, 1, 8, 8), np.float32)
    images[9] = np.eye(8)
    data = dataset([*"aabbccddee"], images=images, columns={"site": np.array(["x"] * 8 + ["y"] * 2)})
    assert opened(contact_sheet(data, 2)).shape[1] == 2 * 132 + 4
    assert opened(contact_sheet(data, 100)).shape == (2 * 148 + 4, 8 * 132 + 4, 3)


def test_sites_may_be_given_for_simulated_hospitals() -> None:
    data = dataset(["a", "b"], images=np.zeros((2, 1, 8, 8), np.float32), labels=np.array([0, 1]))
    with_names = contact_sheet(data, 2, np.array(["hospital_01", "hospital_02"]))
    assert with_names != contact_sheet(data, 2)


def test_volumes_and_colours_and_nothing() -> None:
    solid = dataset(["a"], images=np.random.default_rng(0).random((1, 1, 6, 8, 10)).astype(np.float32))
    assert opened(contact_sheet(solid, 1)).shape == (152, 136, 3)
    colour = dataset(["a"], images=np.random.default_rng(0).random((1, 3, 8, 8)).astype(np.float32))
    assert opened(contact_sheet(colour, 1)).shape == (152, 136, 3)
    nothing = dataset(["a"]).select([])
    assert opened(contact_sheet(nothing, 3)).ndim == 3


def test_the_axial_slice_with_most_mask_right_on_the_left() -> None:
    volume = np.zeros((1, 3, 4, 5))
    volume[0, 2, 3, 4] = 1  # right, front, top
    mask = (volume[0] > 0).astype(np.uint8)
    picture, flat = axial_slice(volume, mask)
    assert picture.shape == (1, 4, 3)
    assert picture[0, 0, 0] == 1
    assert flat[0, 0] == 1
    assert axial_slice(volume, np.zeros_like(mask))[0].max() == 0
