"""Reading one image or mask, whatever its format. The formats are told by READERS, a plain dictionary."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedimaging.data.dicom import read_dicom_file, read_dicom_folder
from fedimaging.data.scan import Scan, ras_volume
from fedimaging.errors import DataError

_PICTURES = (".png", ".jpg", ".jpeg")
_DICOM_MARK = slice(128, 132)


def read_scan(path: Path) -> Scan:
    """The image in the file, or in the folder of one DICOM series.

    Raises DataError naming the path: missing, of no known format, unreadable, or with values that are no finite
    numbers.
    """
    return _read(path, READERS)


def read_mask(path: Path) -> Scan:
    """The mask in the file: pixels (1, *spatial) uint8 class indices.

    In a palette PNG the index is the class, not the colour. A mask of only 0 and 255 is one of 0 and 1.
    Raises DataError as `read_scan` does, and for values that are not whole numbers from 0 to 255, or colours.
    """
    scan = _read(path, READERS | {"picture": read_indexed_picture})
    values = scan.pixels
    if len(values) > 1 and (values != values[:1]).any():
        raise DataError(f"{path} has {len(values)} channels; a mask has one class index a pixel.")
    values = values[:1]
    if values.min() < 0 or values.max() > 255 or (values != np.floor(values)).any():
        raise DataError(f"{path} has values that are no class index (whole numbers from 0 to 255).")
    classes = values.astype(np.uint8)
    if classes.max() == 255 and not ((classes > 0) & (classes < 255)).any():
        classes = (classes > 0).astype(np.uint8)
    return Scan(classes, None, scan.spacing_mm, scan.orientation, scan.affine)


def read_picture(path: Path) -> Scan:
    """PNG or JPEG: (1, rows, columns) of grey or (3, rows, columns) of colours; transparency is dropped."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode in ("P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"):
            image = image.convert("RGB")
        elif image.mode in ("LA", "La"):
            image = image.convert("L")
        pixels = np.asarray(image)
    full_scale = {"1": 1.0, "L": 255.0, "RGB": 255.0}.get(image.mode)
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    return Scan(np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None], full_scale)


def read_indexed_picture(path: Path) -> Scan:
    """As `read_picture`, but the palette's indices instead of its colours."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        if file.mode == "P":
            return Scan(np.asarray(ImageOps.exif_transpose(file))[None])
    return read_picture(path)


def read_nifti(path: Path) -> Scan:
    """NIfTI as (C, x, y, z) in RAS; a fourth axis of the file is taken as channels."""
    import nibabel

    image = nibabel.load(path)
    data = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 2:
        data = data[..., None]
    if data.ndim not in (3, 4):
        raise DataError(f"has {data.ndim} axes; a volume has 3, or 4 with its channels last.")
    volume = np.moveaxis(data, -1, 0) if data.ndim == 4 else data[None]
    return ras_volume(volume, np.asarray(image.affine))  # type: ignore[attr-defined]


READERS: dict[str, Callable[[Path], Scan]] = {
    "picture": read_picture,
    "nifti": read_nifti,
    "dicom": read_dicom_file,
    "dicom_folder": read_dicom_folder,
}
"""Format to reader. Each takes a path and gives a Scan; it may raise anything, which `read_scan` turns into a
DataError.
"""


def format_of(path: Path) -> str:
    """The name in READERS for what is at `path`. Raises DataError for nothing there, or nothing known."""
    if path.is_dir():
        return "dicom_folder"
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    name = path.name.lower()
    if name.endswith(_PICTURES):
        return "picture"
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith((".dcm", ".dicom")) or _has_dicom_mark(path):
        return "dicom"
    raise DataError(
        f"{path} is of no known format; known: {', '.join(_PICTURES)}, .nii, .nii.gz, DICOM files and folders."
    )


def _has_dicom_mark(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[_DICOM_MARK] == b"DICM"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _read(path: Path, readers: dict[str, Callable[[Path], Scan]]) -> Scan:
    kind = format_of(path)
    try:
        scan = readers[kind](path)
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except (
        Exception
    ) as error:  # the libraries raise some twenty kinds for a broken file, from zlib.error to AttributeError
        raise DataError(f"{path} cannot be read as {kind.replace('_', ' ')}: {_short(error)}") from error
    _check_values(path, scan.pixels)
    return scan


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " …"


def _check_values(path: Path, pixels: np.ndarray) -> None:
    if pixels.dtype.kind not in "biuf":
        raise DataError(f"{path} has values of type {pixels.dtype}, which are no plain numbers.")
    if pixels.size == 0:
        raise DataError(f"{path} has no pixels (shape {pixels.shape}).")
    if pixels.dtype.kind == "f":
        wrong = int((~np.isfinite(pixels)).sum())
        if wrong:
            raise DataError(f"{path} has {wrong} pixels that are NaN or infinite, of {pixels.size}.")
        if np.abs(pixels).max() > np.finfo(np.float32).max:
            raise DataError(f"{path} has values beyond what 32-bit numbers hold.")
