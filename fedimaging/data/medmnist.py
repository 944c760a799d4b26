"""One file in the MedMNIST layout: {train,val,test}_images and _labels arrays in an .npz, one scan a patient."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedimaging.errors import DataError, bad_value

_PARTS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class MedMnist:
    """The table of the file: labels (N, L) int64, split (N,) str, patient_ids (N,) str; train first, validation, test."""

    labels: np.ndarray
    split: np.ndarray
    patient_ids: np.ndarray


def find_file(root: Path, path: str, image_size: Sequence[int]) -> Path:
    """The .npz meant by `path`: the file itself, a name without ending, or a `medmnist` data folder.

    In a folder as the medmnist package keeps it (NAME.npz, NAME_64.npz, NAME_128.npz …) NAME picks the file of the
    study's size where there is one. Raises DataError, listing what is there, when nothing or more than one thing
    fits.
    """
    asked = root / path
    for candidate in (
        asked,
        asked.with_name(f"{asked.name}_{image_size[0]}.npz"),
        asked.with_name(f"{asked.name}.npz"),
    ):
        if candidate.is_file():
            return candidate
    folder = asked if asked.is_dir() else asked.parent
    found = sorted(folder.glob("*.npz"))
    if asked.is_dir() and len(found) == 1:
        return found[0]
    listed = ", ".join(file.name for file in found) or "no .npz file"
    raise DataError(
        bad_value("data.path", path, f"names no single MedMNIST file; {folder} has {listed}", "name one of them")
    )


def read_labels(file: Path) -> MedMnist:
    """Everything but the pixels. Raises DataError when the file is not in the layout or its labels are no whole
    numbers.
    """
    labels, split, patient_ids = [], [], []
    with _opened(file) as arrays:
        for part in (part for part in _PARTS if f"{part}_labels" in arrays.files):
            values = arrays[f"{part}_labels"]
            whole = values.dtype.kind in "uib" or (
                values.dtype.kind == "f" and bool((values == np.floor(values)).all())
            )
            if not whole or values.ndim not in (1, 2):
                raise DataError(
                    f"{file}: {part}_labels is {values.dtype} of shape {values.shape}, not whole numbers a scan."
                )
            labels.append(values.reshape(len(values), -1).astype(np.int64))
            split += [_PARTS[part]] * len(values)
            patient_ids += [f"{part}-{i:06d}" for i in range(len(values))]
    if not split:
        raise DataError(f"{file} has no labels under train_labels, val_labels or test_labels.")
    return MedMnist(np.concatenate(labels), np.array(split, dtype="U10"), np.array(patient_ids))


def read_images(file: Path) -> Iterator[np.ndarray]:
    """Every scan as (C, *spatial) in the order of `read_labels`, one part of the file in memory at a time.

    Grey pictures are (N, H, W) in the file, colour (N, H, W, 3), volumes (N, D, H, W).
    Raises DataError when there are more or fewer scans than labels, or values that are no finite numbers.
    """
    with _opened(file) as arrays:
        for part in (part for part in _PARTS if f"{part}_labels" in arrays.files):
            images = arrays[f"{part}_images"]
            _check_part(file, part, images, len(arrays[f"{part}_labels"]))
            yield from np.moveaxis(images, -1, 1) if images.ndim > 3 and images.shape[-1] == 3 else images[:, None]


@contextmanager
def _opened(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"{file} is a single array and no .npz in the MedMNIST layout.")
            yield arrays
    except KeyError as error:
        raise DataError(f"{file} is not in the MedMNIST layout: {error.args[0]}.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as .npz: {error}.") from error


def _check_part(file: Path, part: str, images: np.ndarray, n_labels: int) -> None:
    if len(images) != n_labels:
        raise DataError(f"{file}: {part}_images has {len(images)} scans but {part}_labels {n_labels}.")
    if images.ndim not in (3, 4, 5) or images.dtype.kind not in "uif":
        raise DataError(f"{file}: {part}_images is {images.dtype} of shape {images.shape}, which is no stack of scans.")
    if images.dtype.kind == "f":
        wrong = ~np.isfinite(images.reshape(len(images), -1)).all(1)
        if wrong.any():
            raise DataError(f"{file}: {part}_images[{int(wrong.argmax())}] has pixels that are NaN or infinite.")
