"""From a `data:` block to arrays: every source, every bad input, and the real data sets."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from fedimaging.data.dataset import Dataset
from fedimaging.data.prepare import prepare
from fedimaging.data.spec import DataSpec, SplitSpec
from fedimaging.errors import DataError

from .making import BLANK, dicom_slice, manifest, pictures, png


def of(path: Path, cache: Path, **given: object) -> Dataset:
    spec = {"source": "manifest", "path": path.name, "root": str(path.parent), "image_size": (6, 8)}
    how = BLANK | {name: given.pop(name) for name in (*BLANK, "keep") if name in given}
    return prepare(DataSpec(**spec | given), cache_dir=cache, **how)  # type: ignore[arg-type]


def test_a_manifest_of_pictures_with_masks(tmp_path: Path) -> None:
    data = of(pictures(tmp_path, site=["a", "a", "b", "b"]), tmp_path / "c", labels=["label"], needs_mask=True)
    assert data.images.shape == (4, 1, 6, 8)
    np.testing.assert_allclose(data.images[:, 0, 0, 0], np.array([0, 10, 20, 30]) / 255, rtol=1e-6)
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.masks is not None
    assert data.masks[0].sum() == 4
    assert data.columns["site"].tolist() == ["a", "a", "b", "b"]
    assert data.patient_ids.tolist() == ["p0", "p1", "p2", "p3"]
    assert data.spacing_mm is None


def test_masks_are_ignored_where_none_are_needed(tmp_path: Path) -> None:
    data = of(pictures(tmp_path, mask=["", "gone.png", "0_mask.png", ""]), tmp_path / "c")
    assert data.masks is None
    assert data.labels is None


def test_several_labels(tmp_path: Path) -> None:
    path = pictures(tmp_path, a=[0, 1, 1, 0], b=[1, 1, 0, 0])
    data = of(path, tmp_path / "c", labels=["a", "b"], multilabel=True)
    assert data.labels is not None
    assert data.labels.dtype == np.float32
    assert data.labels.tolist() == [[0, 1], [1, 1], [1, 0], [0, 0]]
    one = of(path, tmp_path / "c", labels=["a"], multilabel=True)
    assert one.labels is not None
    assert one.labels.shape == (4, 1)
    with pytest.raises(DataError, match="label='2' is out of range"):
        of(
            pictures(tmp_path, label=[0, 1, 2, 0], b=[1, 1, 0, 0]),
            tmp_path / "c",
            labels=["label", "b"],
            classes=9,
            multilabel=True,
        )


def test_a_split_column_wins(tmp_path: Path) -> None:
    path = pictures(tmp_path, split=["test", "val", "train", "Training"])
    assert of(path, tmp_path / "c").split.tolist() == ["test", "validation", "train", "train"]


def test_another_label_or_split_decodes_nothing_again(tmp_path: Path) -> None:
    path, cache = pictures(tmp_path, other=[0, 0, 1, 1]), tmp_path / "c"
    first = of(path, cache, labels=["label"])
    second = of(path, cache, labels=["other"], split=SplitSpec(test=0.5, seed=9))
    assert first.fingerprint != second.fingerprint
    assert len(list(cache.glob("pixels-*"))) == 1
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 3
    assert of(path, cache, labels=["label"]).fingerprint == first.fingerprint


def test_content_and_preprocessing_decide_the_fingerprint(tmp_path: Path) -> None:
    path, cache = pictures(tmp_path), tmp_path / "c"
    before = of(path, cache).fingerprint
    assert of(path, cache, intensity="zscore").fingerprint != before
    assert of(path, cache, image_size=(12, 16)).fingerprint != before
    png(tmp_path / "2.png", np.full((6, 8), 99, np.uint8))
    after = of(path, cache)
    assert after.fingerprint != before
    assert round(float(after.images[2, 0, 0, 0]) * 255) == 99


def test_a_moved_folder_has_the_same_fingerprint(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    before = of(pictures(here), tmp_path / "c").fingerprint
    here.rename(there)
    assert of(there / "manifest.csv", tmp_path / "other").fingerprint == before


def test_an_unreadable_image_names_manifest_line_and_file(tmp_path: Path) -> None:
    path = pictures(tmp_path)
    (tmp_path / "2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"manifest\.csv line 4: .*2\.png cannot be read as picture"):
        of(path, tmp_path / "c")
    assert list((tmp_path / "c").glob("*-*")) == []


def test_pixels_that_are_nan_name_line_and_file(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 4), np.float32)
    values[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "x.nii.gz")
    path = manifest(tmp_path, [{"image": "x.nii.gz", "patient_id": "p"}])
    with pytest.raises(DataError, match=r"line 2: .*x\.nii\.gz has 1 pixels that are NaN"):
        of(path, tmp_path / "c", image_size=(4, 4, 4))


def test_a_mask_of_another_shape_names_line_and_file(tmp_path: Path) -> None:
    path = pictures(tmp_path)
    png(tmp_path / "1_mask.png", np.zeros((8, 6), np.uint8))
    with pytest.raises(DataError, match=r"line 3: mask .*1_mask\.png has shape 8x6 but the image 6x8"):
        of(path, tmp_path / "c", needs_mask=True)


def test_a_mask_value_out_of_range_names_the_line(tmp_path: Path) -> None:
    path = pictures(tmp_path)
    png(tmp_path / "3_mask.png", np.full((6, 8), 2, np.uint8))
    with pytest.raises(DataError, match=r"line 5: the mask has value 2; allowed with 2 classes are 0 to 1"):
        of(path, tmp_path / "c", needs_mask=True)
    assert of(path, tmp_path / "c", needs_mask=True, classes=3).masks is not None


def test_dimensions_of_another_kind_name_line_and_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: .*0\.png is a picture \(2-D\) but data\.image_size=\[4, 4, 4\]"):
        of(pictures(tmp_path), tmp_path / "c", image_size=(4, 4, 4))


def test_no_place_for_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="FEDIMAGING_CACHE"):
        of(pictures(tmp_path), tmp_path / "file")


def test_a_folder_of_dicom_series(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for i in range(4):
            dicom_slice(tmp_path / name / f"{i}.dcm", np.full((6, 4), i, np.uint16), height=5.0 * i)
    path = manifest(tmp_path, [{"image": name, "patient_id": name} for name in ("one", "two")])
    data = of(path, tmp_path / "c", image_size=(4, 6, 4))
    assert data.images.shape == (2, 1, 4, 6, 4)
    np.testing.assert_allclose(data.images[0, 0, 0, 0], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    assert data.spacing_mm == (3.0, 2.0, 5.0)


def test_medmnist_keeps_its_own_split(tmp_path: Path) -> None:
    arrays = {f"{part}_images": np.full((4, 28, 28), 51, np.uint8) for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": np.array([[0], [1], [2], [1]]) for part in ("train", "val", "test")}
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    spec = DataSpec(source="medmnist", path="x.npz", root=str(tmp_path), image_size=(28, 28))
    data = prepare(spec, **BLANK | {"labels": ["label"], "classes": 3}, cache_dir=tmp_path)  # type: ignore[arg-type]
    assert data.split.tolist() == ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    np.testing.assert_allclose(data.images, 0.2, rtol=1e-6)
    with pytest.raises(DataError, match=r"x\.npz scan train-000002: label=2 is out of range"):
        prepare(spec, **BLANK | {"labels": ["label"]}, cache_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1 labels a scan, the study names 2"):
        prepare(spec, **BLANK | {"labels": ["a", "b"]}, cache_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no masks"):
        prepare(spec, **BLANK | {"needs_mask": True}, cache_dir=tmp_path)  # type: ignore[arg-type]


def test_phantoms_know_their_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'lesion'"):
        prepare(DataSpec(), **BLANK | {"labels": ["leison"]}, cache_dir=tmp_path)  # type: ignore[arg-type]


def test_real_chest_x_rays(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "cxr_multisite" / "metadata.csv"
    data = of(path, tmp_path, image_size=(32, 32), labels=["ap_view"])
    assert data.images.shape == (423, 1, 32, 32)
    assert data.n_patients == 175
    assert len(np.unique(data.columns["site"])) == 8
    assert set(data.columns["sex"]) == {"M", "F", ""}
    assert all(len(set(data.split[data.patient_ids == patient])) == 1 for patient in np.unique(data.patient_ids))


def test_real_hippocampus(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "hippocampus" / "metadata.csv"
    columns = {"mask": "label", "patient_id": "case_id"}
    data = of(
        path, tmp_path, image_size=(40, 56, 48), spacing_mm=(1, 1, 1), intensity="percentile", columns=columns,
        needs_mask=True, classes=3,
    )  # fmt: skip
    assert data.images.shape == (60, 1, 40, 56, 48)
    assert data.masks is not None
    anterior = data.columns["voxels_anterior"].astype(int)
    assert ((data.masks == 1).sum(axis=(1, 2, 3)) == anterior).all()
    assert data.spacing_mm == (1, 1, 1)


def test_real_nifti_and_dicom_volumes(shared_data: Path, tmp_path: Path) -> None:
    nifti = {"image": shared_data / "nifti" / "sct_t2.nii.gz", "mask": shared_data / "nifti" / "sct_t2_cordseg.nii.gz"}
    path = manifest(tmp_path, [nifti | {"patient_id": "sct"}], "nifti.csv")
    data = of(path, tmp_path / "c", image_size=(32, 32, 32), spacing_mm=(2, 2, 2), needs_mask=True)
    assert data.masks is not None
    assert data.masks.sum() > 100
    series = ["PGBM-003_T1post", "PGBM-003_HippoCrop"]
    path = manifest(
        tmp_path, [{"image": shared_data / "dicom" / name, "patient_id": "PGBM-003"} for name in series], "dicom.csv"
    )
    data = of(path, tmp_path / "c", image_size=(32, 32, 16), spacing_mm=(6, 6, 6), intensity="percentile")
    assert data.images.shape == (2, 1, 32, 32, 16)
    assert data.n_patients == 1


def test_of_rows_that_are_not_kept_no_file_is_opened(tmp_path: Path) -> None:
    path = pictures(tmp_path)
    whole = of(path, tmp_path / "cache", labels=["label"])
    (tmp_path / "1.png").write_bytes(b"no picture")
    part = of(path, tmp_path / "cache", labels=["label"], keep=lambda columns: [p != "p1" for p in columns["patient_id"]])
    assert part.patient_ids.tolist() == ["p0", "p2", "p3"]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(part.images, whole.images[[0, 2, 3]])
    assert part.fingerprint != whole.fingerprint
    with pytest.raises(DataError, match="no row is left of those that may be used"):
        of(path, tmp_path / "cache", keep=lambda columns: [False] * 4)
    with pytest.raises(DataError, match="'phantoms' has no rows to choose from"):
        prepare(DataSpec(), **BLANK, keep=lambda columns: [])
