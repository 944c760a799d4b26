"""Example pictures: the right slice, the right way round, the right outlines."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fedimaging.errors import RunError
from fedimaging.runs.pictures import PREDICTION_RGB, TRUTH_RGB, example_panel, map_panel, save_png, with_scale


def square(size: int, low: int, high: int) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[low:high, low:high] = 1
    return mask


def where(panel: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return np.all(np.asarray(panel) == colour, axis=-1)


def test_a_scan_without_masks_is_one_square_picture_with_its_aspect_kept() -> None:
    panel = example_panel(np.ones((1, 32, 64)) * np.linspace(0, 1, 64), None, None, size=128)
    pixels = np.asarray(panel)
    assert pixels.shape == (128, 128, 3)
    assert not pixels[:32].any()
    assert not pixels[96:].any()
    assert pixels[64, 2].tolist() < pixels[64, 125].tolist()


def test_outlines_stand_beside_the_plain_scan() -> None:
    panel = example_panel(np.random.default_rng(0).random((1, 64, 64)), square(64, 16, 32), square(64, 40, 56), size=64)
    truth, predicted = where(panel, TRUTH_RGB), where(panel, PREDICTION_RGB)
    assert panel.size == (64 + 4 + 64, 64)
    assert truth.sum() == 4 * 15  # the border of a 16 x 16 square
    assert truth[16, 68 + 16]
    assert truth[31, 68 + 31]
    assert 0 < predicted.sum() < 4 * 15  # dashed
    assert not (truth | predicted)[:, :64].any()


def test_a_mask_that_fills_the_picture_has_an_outline_and_an_empty_one_has_none() -> None:
    image = np.random.default_rng(0).random((1, 32, 32))
    assert where(example_panel(image, np.ones((32, 32)), None, size=32), TRUTH_RGB).sum() == 4 * 31
    assert not where(example_panel(image, np.zeros((32, 32)), None, size=32), TRUTH_RGB).any()


def test_a_volume_is_cut_in_the_middle_of_the_true_mask() -> None:
    volume = np.zeros((1, 32, 32, 9))
    volume[..., 7] = np.random.default_rng(0).random((32, 32))
    mask = np.zeros((32, 32, 9), dtype=np.uint8)
    mask[8:16, 8:16, 6:9] = 1
    assert np.asarray(example_panel(volume, mask, None, size=32))[:, :32].any()
    assert not np.asarray(example_panel(volume, None, None, size=32)).any()  # slice 4 is empty


def test_a_volume_shows_the_patients_right_on_the_left_and_the_front_at_the_top() -> None:
    volume = np.zeros((1, 32, 32, 3))
    volume[0, 24:, 24:, 1] = 1.0  # RAS: towards the patient's right and front
    pixels = np.asarray(example_panel(volume, None, None, size=32))[..., 0]
    assert pixels[:8, :8].min() > 200
    assert pixels[16:, 16:].max() == 0


def test_three_channels_are_colour_and_two_are_grey() -> None:
    image = np.zeros((3, 32, 32))
    image[0] = square(32, 8, 24)
    assert np.asarray(example_panel(image, None, None, size=32))[16, 16].tolist() == [255, 0, 0]
    assert np.asarray(example_panel(image[:2], None, None, size=32))[16, 16].tolist() == [255, 255, 255]


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_an_even_scan_is_drawn_without_a_warning(value: float) -> None:
    assert example_panel(np.full((1, 16, 16), value), None, None).size == (160, 160)


def test_shapes_that_do_not_fit_are_refused() -> None:
    image = np.zeros((1, 16, 16))
    with pytest.raises(RunError, match=r"truth_mask\.shape=\(8, 8\)"):
        example_panel(image, np.zeros((8, 8)), None)
    with pytest.raises(RunError, match=r"image\.shape"):
        example_panel(image[0], None, None)
    with pytest.raises(RunError, match="size=4"):
        example_panel(image, None, None, size=4)


def test_a_saved_picture_carries_no_text_of_its_source(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", "Doe")
    Image.new("L", (8, 8), 7).save(tmp_path / "source.png", pnginfo=info)
    with Image.open(tmp_path / "source.png") as source:
        save_png(source, tmp_path / "new" / "copy.png")
    with Image.open(tmp_path / "new" / "copy.png") as copy:
        assert copy.info == {}
        assert copy.getpixel((0, 0)) == 7
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy.png"]


def test_a_picture_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(RunError, match=r"x\.png"):
        save_png(Image.new("L", (8, 8)), tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_map_lies_orange_beside_the_scan_with_a_line_around_half_of_its_strongest_place() -> None:
    values = np.zeros((32, 32), np.float32)
    values[8:16, 8:16] = 1.0
    pixels = np.asarray(map_panel(np.full((1, 32, 32), 0.5), values, size=32)).astype(int)
    assert pixels.shape == (32, 32 + 4 + 32, 3)
    marked = pixels[:, 36:]
    assert marked[12, 12].tolist() == [round(0.7 * part) for part in PREDICTION_RGB]  # on black
    assert (marked[8, 8:16] == 255).all()
    assert not marked[7, 8:16].any()  # the line's dark rim
    assert np.array_equal(marked[20:, 20:], pixels[20:, 20:32])


def test_an_empty_map_leaves_the_scan_as_it_is_and_a_volume_is_cut_where_the_map_is_strongest() -> None:
    flat = np.random.default_rng(0).random((1, 32, 32))
    pixels = np.asarray(map_panel(flat, np.zeros((32, 32)), size=32))
    assert np.array_equal(pixels[:, :32], pixels[:, 36:])
    volume, values = np.zeros((1, 32, 32, 9)), np.zeros((32, 32, 9))
    volume[..., 7] = flat[0]
    values[10, 10, 7] = 0.2
    assert np.asarray(map_panel(volume, values, size=32))[:, :32].any()
    with pytest.raises(RunError, match=r"values\.shape"):
        map_panel(flat, values, size=32)


def test_a_scale_stands_under_a_map_that_is_looked_at_alone() -> None:
    panel = map_panel(np.full((1, 32, 32), 0.5), np.zeros((32, 32)), size=160)
    scaled = np.asarray(with_scale(panel, "what speaks for lesion"))
    assert np.array_equal(scaled[:160], np.asarray(panel))
    ramp = scaled[160 + 8, 16:116].astype(int)
    assert (np.diff(ramp[:, 0] - ramp[:, 2]) >= 0)[:49].all()
    assert ramp[-1].tolist() == [round(0.3 * 96 + 0.7 * part) for part in PREDICTION_RGB]
