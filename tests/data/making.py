"""Small files of every format, made for the tests."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedimaging.data.dataset import Dataset

BLANK = {"labels": [], "needs_mask": False, "classes": 2, "multilabel": False}


def png(path: Path, pixels: np.ndarray) -> Path:
    """A grey or colour PNG."""
    Image.fromarray(pixels).save(path)
    return path


def manifest(folder: Path, rows: Sequence[Mapping[str, object]], name: str = "manifest.csv") -> Path:
    """A CSV with the keys of the first row as its header."""
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def pictures(folder: Path, n: int = 4, **columns: Sequence[object]) -> Path:
    """A manifest of `n` grey 6x8 pictures with masks, one patient each; `columns` replaces or adds columns."""
    rows: list[dict[str, object]] = []
    for i in range(n):
        png(folder / f"{i}.png", np.full((6, 8), 10 * i, np.uint8))
        png(folder / f"{i}_mask.png", np.pad(np.ones((2, 2), np.uint8), ((2, 2), (3, 3))))
        row: dict[str, object] = {"image": f"{i}.png", "mask": f"{i}_mask.png", "patient_id": f"p{i}", "label": i % 2}
        rows.append(row | {name: values[i] for name, values in columns.items()})
    return manifest(folder, rows)


def dataset(patient_ids: Sequence[str], **given: Any) -> Dataset:
    """A data set in memory of blank 2x2 scans; everything trains unless `split` says otherwise."""
    n = len(patient_ids)
    facts: dict[str, Any] = {
        "images": np.zeros((n, 1, 2, 2), np.float32),
        "labels": None,
        "masks": None,
        "patient_ids": np.array(patient_ids),
        "split": np.full(n, "train", dtype="U10"),
        "columns": {},
        "spacing_mm": None,
        "fingerprint": "",
    }
    return Dataset(**facts | given)


def dicom_slice(path: Path, stored: np.ndarray, *, height: float | None = 0.0, **tags: Any) -> Path:
    """One MR slice whose columns run to the patient's left, rows to the back, at `height` mm towards the head."""
    from pydicom.dataset import Dataset as Tags
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    ds = Tags()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    ds.SeriesInstanceUID, ds.Modality = "1.2.3", "MR"
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = stored.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(stored.dtype.kind == "i")
    ds.PixelSpacing, ds.SliceThickness = [2.0, 3.0], 5.0
    if height is not None:
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0.0, 0.0, height]
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = stored.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path
