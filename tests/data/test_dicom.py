"""DICOM files and series, made and real."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedimaging.data.readers import read_scan
from fedimaging.errors import DataError

from .making import dicom_slice

SLICE = np.arange(12, dtype=np.uint16).reshape(3, 4)


def series(folder: Path, heights: list[float | None], **tags: object) -> Path:
    """Slice i holds 100 i + SLICE; file names are in an order of their own."""
    folder.mkdir()
    names = [f"{i:02d}.dcm" for i in range(len(heights))]
    random.Random(3).shuffle(names)
    for i, (name, height) in enumerate(zip(names, heights, strict=True)):
        dicom_slice(folder / name, SLICE + np.uint16(100 * i), height=height, InstanceNumber=i + 1, **tags)
    return folder


def test_slices_are_ordered_by_position_and_turned_to_ras(tmp_path: Path) -> None:
    scan = read_scan(series(tmp_path / "s", [0.0, 5.0, 10.0, 15.0]))
    assert scan.pixels.shape == (1, 4, 3, 4)
    assert scan.spacing_mm == (3.0, 2.0, 5.0)
    assert scan.orientation == "LPS"
    assert (scan.pixels[0, 0, 0] // 100).tolist() == [0, 1, 2, 3]
    # Stored columns run to the left and rows to the back, RAS runs to the right and the front: both mirrored.
    np.testing.assert_array_equal(scan.pixels[0, :, :, 0], SLICE.T[::-1, ::-1])


def test_numbers_against_the_positions_do_not_matter(tmp_path: Path) -> None:
    scan = read_scan(series(tmp_path / "s", [15.0, 10.0, 5.0, 0.0]))
    assert (scan.pixels[0, 0, 0] // 100).tolist() == [3, 2, 1, 0]


def test_without_positions_the_numbers_give_the_order(tmp_path: Path) -> None:
    scan = read_scan(series(tmp_path / "s", [None, None, None]))
    assert (scan.pixels[0, 0, 0] // 100).tolist() == [0, 1, 2]
    assert scan.spacing_mm is None
    assert scan.orientation is None


def test_series_that_make_no_volume_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is one missing"):
        read_scan(series(tmp_path / "gap", [0.0, 5.0, 15.0, 20.0]))
    with pytest.raises(DataError, match="same place"):
        read_scan(series(tmp_path / "twice", [0.0, 5.0, 5.0]))
    two = series(tmp_path / "two", [0.0, 5.0])
    dicom_slice(two / "other.dcm", SLICE, height=10.0, SeriesInstanceUID="9.9")
    with pytest.raises(DataError, match="holds 2 series"):
        read_scan(two)
    tilted = series(tmp_path / "tilted", [0.0, 5.0])
    dicom_slice(tilted / "t.dcm", SLICE, height=10.0, ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    with pytest.raises(DataError, match="not parallel"):
        read_scan(tilted)
    shapes = series(tmp_path / "shapes", [0.0, 5.0])
    dicom_slice(shapes / "s.dcm", SLICE.T.copy(), height=10.0)
    with pytest.raises(DataError, match="different shape"):
        read_scan(shapes)
    unknown = series(tmp_path / "unknown", [None, None])
    dicom_slice(unknown / "u.dcm", SLICE, height=None)
    with pytest.raises(DataError, match="order cannot be known"):
        read_scan(unknown)


def test_other_files_beside_the_slices(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", [0.0, 5.0])
    (folder / "notes.txt").write_text("passed over")
    (folder / "DICOMDIR").write_text("passed over")
    assert read_scan(folder).pixels.shape == (1, 4, 3, 2)
    (folder / "fake.dcm").write_text("not passed over")
    with pytest.raises(DataError, match=r"fake\.dcm, which is not a DICOM file"):
        read_scan(folder)


def test_values_are_rescaled_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = dicom_slice(tmp_path / "ct.dcm", SLICE, RescaleSlope=2, RescaleIntercept=-1024)
    np.testing.assert_array_equal(read_scan(path).pixels[0], SLICE * 2.0 - 1024)
    path = dicom_slice(tmp_path / "m1.dcm", SLICE, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_scan(path).pixels[0], 65535 - SLICE.astype(int))
    path = dicom_slice(tmp_path / "signed.dcm", SLICE.astype(np.int16), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_scan(path).pixels[0], -1 - SLICE.astype(int))


def test_eight_bits_have_a_full_scale(tmp_path: Path) -> None:
    assert read_scan(dicom_slice(tmp_path / "a.dcm", SLICE.astype(np.uint8))).full_scale == 255
    assert read_scan(dicom_slice(tmp_path / "b.dcm", SLICE)).full_scale is None


def test_a_file_without_ending_is_known_by_its_mark(tmp_path: Path) -> None:
    dicom_slice(tmp_path / "IM0001.dcm", SLICE).rename(tmp_path / "IM0001")
    scan = read_scan(tmp_path / "IM0001")
    assert scan.pixels.shape == (1, 3, 4)
    assert scan.spacing_mm == (2.0, 3.0)


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    path = dicom_slice(tmp_path / "x.dcm", SLICE)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"x\.dcm cannot be read as dicom"):
        read_scan(path)


def test_real_series(shared_data: Path) -> None:
    scan = read_scan(shared_data / "dicom" / "PGBM-003_T1post")
    assert scan.pixels.shape == (1, 280, 320, 22) or scan.pixels.shape == (1, 320, 280, 22)
    assert scan.spacing_mm is not None
    np.testing.assert_allclose(scan.spacing_mm, (0.6875, 0.6875, 6.5), rtol=1e-4)
    assert read_scan(shared_data / "dicom" / "PGBM-003_HippoCrop").pixels.shape == (1, 34, 50, 40)


def test_a_real_series_with_a_slice_taken_out(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    shutil.copytree(shared_data / "dicom" / "PGBM-003_HippoCrop", folder)
    (folder / "020.dcm").unlink()
    with pytest.raises(DataError, match="is one missing"):
        read_scan(folder)


REAL = {
    "693_J2KR": ((1, 512, 512), -3024, 1468),
    "693_UNCR": ((1, 512, 512), -3024, 1468),
    "MR-SIEMENS-DICOM-WithOverlays": ((1, 484, 484), 0, 1123),
    "OBXXXX1A_rle": ((3, 600, 800), 0, 65280),
    "OBXXXX1A_rle_2frame": ((3, 800, 600, 2), 0, 65280),
    "US1_J2KR": ((3, 480, 640), 0, 255),
    "bad_sequence": ((1, 512, 512), -1011, 1243),
    "deid_us_greyscale": ((1, 768, 1024), 0, 254),
    "deid_ctbrain1": ((3, 456, 510), 0, 255),
    "eCT_Supplemental": ((1, 512, 512, 2), -1024, 172),
    "emri_small": ((1, 64, 64, 10), 0, 467),
    "explicit_VR-UN": ((1, 512, 512), -1024, 1186),
}


@pytest.mark.parametrize("name", REAL)
def test_real_single_files_of_every_transfer_syntax(shared_data: Path, name: str) -> None:
    scan = read_scan(shared_data / "dicom" / "single" / f"{name}.dcm")
    assert (scan.pixels.shape, scan.pixels.min(), scan.pixels.max()) == REAL[name]


def test_real_multi_frame_geometry_and_segmentation_objects(shared_data: Path) -> None:
    single = shared_data / "dicom" / "single"
    assert read_scan(single / "eCT_Supplemental.dcm").spacing_mm == (0.388672, 0.388672, 10.0)
    assert read_scan(single / "emri_small.dcm").spacing_mm is None
    with pytest.raises(DataError, match="segmentation object"):
        read_scan(single / "liver.dcm")


def test_two_codings_of_one_real_image_are_equal(shared_data: Path) -> None:
    single = shared_data / "dicom" / "single"
    np.testing.assert_array_equal(read_scan(single / "693_J2KR.dcm").pixels, read_scan(single / "693_UNCR.dcm").pixels)
