"""DICOM: one file as a picture (or, with several frames, a volume), and a folder as one series in slice order.

Values are those of the modality (rescale slope and intercept applied, so CT is in Hounsfield units); MONOCHROME1 is
inverted, so that more is brighter everywhere; palette and YBR colours become RGB. Nothing of the header but the
geometry and the pixel description is kept: no name, date or number of the patient gets beyond this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.data.scan import Scan, ras_volume
from fedimaging.errors import DataError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """Where one slice lies: directions of its columns' and rows' index, corner in mm (LPS), (row, column) spacing."""

    along_columns: np.ndarray
    along_rows: np.ndarray
    corner: np.ndarray
    spacing: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        """Right-handed, unit length."""
        return np.cross(self.along_columns, self.along_rows)


def read_dicom_file(path: Path) -> Scan:
    """A single-frame file as a picture (C, rows, columns), a multi-frame one as a volume, in RAS where it tells how
    it lies.
    """
    import pydicom

    ds = pydicom.dcmread(path)
    frames, full_scale = _values(ds)
    if len(frames) == 1:
        spacing = ds.get("PixelSpacing") or ds.get("ImagerPixelSpacing")
        return Scan(frames[0], full_scale, tuple(float(s) for s in spacing) if spacing else None)
    groups = [_groups(ds, i) for i in range(len(frames))]
    planes = [_plane(group) for group in groups]
    return _stack(frames, full_scale, planes, list(range(len(frames))), _thickness(groups[0]))


def read_dicom_folder(folder: Path) -> Scan:
    """All DICOM files of the folder as one volume (C, x, y, z) in RAS, slices ordered along the slice normal by
    position.

    The names of the files do not matter. Without positions the instance numbers give the order, and neither spacing
    nor orientation is known. Raises DataError for no DICOM file, more than one series, slices of different shape, two
    slices in one place, or uneven gaps (a slice is missing).
    """
    slices = _one_series(folder)
    values = [_values(ds) for ds in slices]
    if any(len(frames) != 1 for frames, _ in values):
        raise DataError("holds a multi-frame file among its slices; name that file itself as the image.")
    frames = [frames[0] for frames, _ in values]
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise DataError(f"holds slices of different shape: {sorted(shapes)}.")
    numbers = [ds.get("InstanceNumber") for ds in slices]
    planes = [_plane([ds]) for ds in slices]
    if None in planes and (None in numbers or len(set(numbers)) < len(numbers)):
        raise DataError("tells neither where its slices lie nor a number for each; their order cannot be known.")
    order = [int(number) if number is not None else 0 for number in numbers]
    return _stack(frames, values[0][1], planes, order, _thickness([slices[0]]))


def _one_series(folder: Path) -> list[Any]:
    """The read files of the folder. A file that is no DICOM is passed over unless it calls itself one."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    found = []
    for file in sorted(folder.iterdir()):
        if file.is_dir() or file.name.startswith(".") or file.name == "DICOMDIR":
            continue
        try:
            found.append(pydicom.dcmread(file))
        except InvalidDicomError as error:
            if file.suffix.lower() in (".dcm", ".dicom"):
                raise DataError(f"holds {file.name}, which is not a DICOM file.") from error
    if not found:
        raise DataError("holds no DICOM file; name the folder that holds the slices of one series.")
    series = sorted({str(ds.get("SeriesInstanceUID")) for ds in found})
    if len(series) > 1:
        raise DataError(f"holds {len(series)} series; keep one series in a folder.")
    return found


def _values(ds: Any) -> tuple[list[np.ndarray], float | None]:
    """Every frame as (C, rows, columns), and the value of full white of 8-bit and palette pictures."""
    from pydicom.pixels import apply_color_lut, pixel_array

    if ds.get("Modality") == "SEG":
        raise DataError("is a DICOM segmentation object, which is not read; convert it to NIfTI.")
    stored = pixel_array(ds)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, ds)
    colour = ds.SamplesPerPixel == 3 or ds.PhotometricInterpretation == "PALETTE COLOR"
    frames = stored if int(ds.get("NumberOfFrames") or 1) > 1 else stored[None]
    if colour:
        return [np.moveaxis(frame, -1, 0) for frame in frames], float(np.iinfo(stored.dtype).max)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        # Mirrored within what the bits can hold, not within this slice: all slices of a series then fit together.
        frames = (-1 if ds.PixelRepresentation else 2 ** int(ds.BitsStored) - 1) - frames.astype(np.int64)
    rescaled = [_rescaled(frame, ds, i) for i, frame in enumerate(frames)]
    plain = stored.dtype == np.uint8 and int(ds.BitsStored) == 8 and not any(changed for _, changed in rescaled)
    return [values[None] for values, _ in rescaled], 255.0 if plain else None


def _rescaled(frame: np.ndarray, ds: Any, i: int) -> tuple[np.ndarray, bool]:
    """The frame in the modality's values, and whether these differ from the stored ones."""
    from pydicom.pixels import apply_modality_lut

    if "ModalityLUTSequence" in ds:
        return apply_modality_lut(frame, ds), True
    transform = _first(_groups(ds, i), "PixelValueTransformationSequence") or ds
    slope, intercept = float(transform.get("RescaleSlope", 1) or 1), float(transform.get("RescaleIntercept", 0) or 0)
    plain = (slope, intercept) == (1.0, 0.0)
    return (frame, False) if plain else (frame * slope + intercept, True)


def _groups(ds: Any, i: int) -> list[Any]:
    """Where facts on frame `i` may stand, the nearest first: its own functional groups, the shared ones, the file."""
    own, shared = ds.get("PerFrameFunctionalGroupsSequence") or [], ds.get("SharedFunctionalGroupsSequence") or []
    return [*own[i : i + 1], *shared[:1], ds]


def _first(groups: Sequence[Any], sequence: str) -> Any:
    """The first item of the named sequence in the nearest group that has it, or None."""
    return next((group[sequence][0] for group in groups if group.get(sequence)), None)


def _plane(groups: Sequence[Any]) -> Plane | None:
    """Where the frame lies; None when the file does not say all of it."""
    orientation = (_first(groups, "PlaneOrientationSequence") or groups[-1]).get("ImageOrientationPatient")
    position = (_first(groups, "PlanePositionSequence") or groups[-1]).get("ImagePositionPatient")
    spacing = (_first(groups, "PixelMeasuresSequence") or groups[-1]).get("PixelSpacing")
    if not (orientation and position and spacing):
        return None
    directions = np.array(orientation, dtype=float)
    return Plane(
        directions[:3], directions[3:], np.array(position, dtype=float), (float(spacing[0]), float(spacing[1]))
    )


def _thickness(groups: Sequence[Any]) -> float:
    measures = _first(groups, "PixelMeasuresSequence") or groups[-1]
    return float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0)


def _stack(
    frames: Sequence[np.ndarray],
    full_scale: float | None,
    planes: Sequence[Plane | None],
    order: list[int],
    thickness: float,
) -> Scan:
    """Slices (C, rows, columns) to one volume; `thickness` is the gap where there is one slice only."""
    placed = [plane for plane in planes if plane is not None]
    if len(placed) < len(planes):
        rank = np.argsort(order, kind="stable")
        return Scan(_from_slices([frames[i] for i in rank]), full_scale)
    _check_parallel(placed)
    first = placed[0]
    heights = np.array([plane.corner @ first.normal for plane in placed])
    rank = np.argsort(heights, kind="stable")
    _check_gaps(np.diff(heights[rank]))
    lowest, highest = placed[rank[0]].corner, placed[rank[-1]].corner
    step = (highest - lowest) / (len(rank) - 1) if len(rank) > 1 else first.normal * thickness
    affine = np.eye(4)
    affine[:3, 0] = first.along_columns * first.spacing[1]
    affine[:3, 1] = first.along_rows * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = lowest
    scan = ras_volume(_from_slices([frames[i] for i in rank]), _LPS_TO_RAS @ affine)
    return Scan(scan.pixels, full_scale, scan.spacing_mm, scan.orientation, scan.affine)


def _from_slices(frames: Sequence[np.ndarray]) -> np.ndarray:
    """(C, rows, columns) each, to (C, column index, row index, slice): the axes that the affine speaks of."""
    return np.stack(frames, axis=-1).swapaxes(1, 2)


def _check_parallel(planes: Sequence[Plane]) -> None:
    first = planes[0]
    for plane in planes:
        if not (
            np.allclose(plane.along_columns, first.along_columns, atol=1e-3)
            and np.allclose(plane.along_rows, first.along_rows, atol=1e-3)
            and np.allclose(plane.spacing, first.spacing, rtol=1e-3)
        ):
            raise DataError("holds slices that are not parallel, or of different pixel spacing.")


def _check_gaps(gaps: np.ndarray) -> None:
    if len(gaps) == 0:
        return
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        raise DataError("holds two slices in the same place; keep one repetition or phase in a folder.")
    if np.abs(gaps - usual).max() > 0.1 * usual:
        raise DataError(f"has uneven gaps between slices ({gaps.min():.2f} to {gaps.max():.2f} mm): is one missing?")
