"""One scan as its file holds it, and the turn of a volume to RAS."""

from dataclasses import dataclass

import numpy as np

from fedimaging.errors import DataError


@dataclass(frozen=True)
class Scan:
    """What every reader gives.

    pixels: (C, rows, columns) of a picture or (C, x, y, z) of a volume; a volume whose format tells how the patient
    lies is in RAS order: x grows to the patient's right, y to the front, z to the head.
    full_scale: the value of full white where the format has one (255 in 8-bit pictures), else None.
    spacing_mm: of the spatial axes; None where the format tells none.
    orientation: the axes as they lie in the file, e.g. "LPS"; None where the format tells none.
    affine: (4, 4) from voxel to mm in RAS, after the turn; None where the format tells none.
    """

    pixels: np.ndarray
    full_scale: float | None = None
    spacing_mm: tuple[float, ...] | None = None
    orientation: str | None = None
    affine: np.ndarray | None = None


def ras_volume(volume_CXYZ: np.ndarray, affine: np.ndarray) -> Scan:
    """The volume turned so that its axes are the nearest to right, anterior, superior: axes swapped and mirrored, no
    voxel changed. `affine` (4, 4) leads from the given voxels to mm in RAS. Raises DataError when it leads nowhere.
    """
    from nibabel import affines, orientations

    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError("has voxel axes that span no volume (its header's affine is singular).")
    turn = orientations.io_orientation(affine)
    shape = volume_CXYZ.shape[1:]
    turned = np.stack([orientations.apply_orientation(channel, turn) for channel in volume_CXYZ])
    new_affine = affine @ orientations.inv_ornt_aff(turn, shape)
    return Scan(
        pixels=turned,
        spacing_mm=tuple(float(size) for size in affines.voxel_sizes(new_affine)),
        orientation="".join(orientations.ornt2axcodes(turn)),
        affine=new_affine,
    )


def check_pair(image: Scan, mask: Scan) -> None:
    """The mask must lie on the image's own grid: same shape, and, where both tell it, the same place within half a
    voxel.

    Raises DataError, to be read after the mask's name.
    """
    here, there = mask.pixels.shape[1:], image.pixels.shape[1:]
    if here != there:
        raise DataError(f"has shape {_times(here)} but the image {_times(there)}; draw it on the image's own grid.")
    if image.affine is None or mask.affine is None or image.spacing_mm is None:
        return
    corners = np.array([[i, j, k, 1] for i in (0, there[0]) for j in (0, there[1]) for k in (0, there[2])]).T
    apart = np.linalg.norm((image.affine - mask.affine) @ corners, axis=0).max()
    if apart > 0.5 * min(image.spacing_mm):
        raise DataError(f"lies up to {apart:.1f} mm off the image's grid; resample it to the image.")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
