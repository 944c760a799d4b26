"""Every format: what is read from a good file, and what is said of a bad one."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedimaging.data.readers import read_mask, read_scan
from fedimaging.errors import DataError

from .making import png

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4)


def nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize(
    ("mode", "shape", "white"),
    [("L", (1, 3, 4), 255), ("LA", (1, 3, 4), 255), ("1", (1, 3, 4), 1), ("RGB", (3, 3, 4), 255), ("RGBA", (3, 3, 4), 255),
     ("P", (3, 3, 4), 255), ("CMYK", (3, 3, 4), 255)],
)  # fmt: skip
def test_pictures_of_every_mode(tmp_path: Path, mode: str, shape: tuple[int, ...], white: float) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(RAMP).convert("RGB").convert(mode).save(path)
    scan = read_scan(path)
    assert scan.pixels.shape == shape
    assert scan.full_scale == white


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    scan = read_scan(png(tmp_path / "x.png", RAMP.astype(np.uint16) * 5000))
    assert scan.pixels.max() == 55000
    assert scan.full_scale is None


def test_jpeg_grey(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(tmp_path / "x.JPEG", quality=95)
    assert abs(int(read_scan(tmp_path / "x.JPEG").pixels[0, 4, 4]) - 100) <= 1


def test_nifti_comes_in_ras_with_spacing(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    scan = read_scan(nifti(tmp_path / "x.nii.gz", values, np.diag([-1.5, 2, 3, 1])))
    assert scan.spacing_mm == (1.5, 2, 3)
    assert scan.orientation == "LAS"
    np.testing.assert_array_equal(scan.pixels[0], values[::-1])


def test_the_fourth_axis_of_nifti_is_channels(tmp_path: Path) -> None:
    assert read_scan(nifti(tmp_path / "x.nii", np.zeros((2, 3, 4, 5), np.float32))).pixels.shape == (5, 2, 3, 4)
    assert read_scan(nifti(tmp_path / "y.nii", np.zeros((2, 3, 4, 1), np.float32))).pixels.shape == (1, 2, 3, 4)
    with pytest.raises(DataError, match="5 axes"):
        read_scan(nifti(tmp_path / "z.nii", np.zeros((2, 2, 2, 2, 2), np.float32)))


def test_masks_are_class_indices(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="L").convert("P")
    palette.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    palette.putdata([0, 1, 2, 1])
    palette.save(tmp_path / "p.png")
    assert read_mask(tmp_path / "p.png").pixels.ravel().tolist() == [0, 1, 2, 1]
    assert read_mask(png(tmp_path / "w.png", np.array([[0, 255]], np.uint8))).pixels.ravel().tolist() == [0, 1]
    grey = np.repeat(np.array([[[0], [3]]], np.uint8), 3, axis=2)
    assert read_mask(png(tmp_path / "g.png", grey)).pixels.ravel().tolist() == [0, 3]
    one_bit = tmp_path / "b.png"
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(one_bit)
    assert read_mask(one_bit).pixels.ravel().tolist() == [0, 1]


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class index"):
        read_mask(nifti(tmp_path / "half.nii", np.full((2, 2, 2), 0.5, np.float32)))
    with pytest.raises(DataError, match="no class index"):
        read_mask(nifti(tmp_path / "minus.nii", np.full((2, 2, 2), -1, np.int16)))
    with pytest.raises(DataError, match="3 channels"):
        read_mask(png(tmp_path / "c.png", np.arange(12, dtype=np.uint8).reshape(2, 2, 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_told(tmp_path: Path, value: float) -> None:
    values = np.zeros((2, 2, 2), np.float32)
    values[0, 0, 0] = value
    with pytest.raises(DataError, match=r"x\.nii has 1 pixels that are NaN or infinite, of 8"):
        read_scan(nifti(tmp_path / "x.nii", values))


def test_values_beyond_32_bits_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="32-bit"):
        read_scan(nifti(tmp_path / "x.nii", np.full((2, 2, 2), 1e300)))


def test_missing_and_unknown_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png is missing"):
        read_scan(tmp_path / "x.png")
    (tmp_path / "x.bmp").write_bytes(b"BM")
    with pytest.raises(DataError, match=r"known: \.png"):
        read_scan(tmp_path / "x.bmp")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no DICOM file"):
        read_scan(tmp_path / "folder")


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.nii", "x.nii.gz", "x.dcm"])
@pytest.mark.parametrize("content", [b"", b"not an image at all" * 40], ids=["empty", "text"])
def test_files_of_no_sense_are_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} cannot be read as"):
        read_scan(tmp_path / name)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.nii", "x.nii.gz"])
def test_truncated_files_are_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    if "nii" in name:
        nifti(path, noise[:, :, None])
    else:
        Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{name} cannot be read as"):
        read_scan(path)


def test_real_nifti_is_turned_to_ras(shared_data: Path) -> None:
    image = read_scan(shared_data / "nifti" / "sct_t2.nii.gz")
    mask = read_mask(shared_data / "nifti" / "sct_t2_cordseg.nii.gz")
    assert image.orientation == "PSR"
    assert image.pixels.shape == mask.pixels.shape == (1, 52, 60, 55)
    assert set(np.unique(mask.pixels)) == {0, 1}
