"""From a scan as it was read to the one shape and intensity of the study: nothing here looks at any other scan."""

import numpy as np
from PIL import Image

from fedimaging.data.scan import Scan
from fedimaging.data.spec import DataSpec
from fedimaging.errors import DataError

RECIPE = 1
"""Part of every store's key: raise it when any function here gives other pixels than before."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow and DICOM's YBR use it


def prepare_image(scan: Scan, spec: DataSpec) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """The scan as (channels, *image_size) float32, and the spacing of its axes in mm where known.

    Raises DataError when the scan has other dimensions or channels than the study, or lacks the spacing that it needs.
    """
    pixels, spacing = _of_dims(scan, spec)
    pixels = _to_channels(pixels, spec.channels).astype(np.float32, copy=False)
    sized, spacing = _rescale(pixels, spacing, spec, nearest=False)
    image = _normalise(sized, spec.intensity, scan.full_scale)
    background = float(image.min()) if spec.intensity == "zscore" else 0.0
    return _crop_or_pad(image, spec.image_size, background), spacing


def prepare_mask(mask: Scan, spec: DataSpec) -> np.ndarray:
    """The mask as (*image_size) uint8, nearest neighbour, so that no class is invented; 0 around the scan."""
    pixels, spacing = _of_dims(mask, spec)
    sized, _ = _rescale(pixels[:1], spacing, spec, nearest=True)
    return _crop_or_pad(sized, spec.image_size, 0)[0]


def restore_mask(mask: np.ndarray, scan: Scan, spec: DataSpec) -> np.ndarray:
    """A label map of the prepared scan (*image_size) back on the scan's own grid (*spatial of `scan.pixels`): nearest
    neighbour, and 0 where the prepared scan did not reach."""
    pixels, spacing = _of_dims(scan, spec)
    shape = pixels.shape[1:]
    sized = _rescale(np.zeros((1, *shape), np.uint8), spacing, spec, nearest=True)[0].shape[1:]
    whole = _crop_or_pad(mask[None], sized, 0)
    if len(shape) == 2:
        own = _resize_plane(whole, shape, nearest=True)
    else:
        own = _resample(whole, np.divide(shape, sized), nearest=True)
    if scan.pixels.ndim == 4 and len(shape) == 2:  # a volume one slice thick, seen as a picture
        own = np.flip(own, (1, 2)).swapaxes(1, 2)
    return own.reshape(scan.pixels.shape[1:])


def _of_dims(scan: Scan, spec: DataSpec) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """(C, *spatial) with as many spatial axes as the study, and their spacing.

    A volume one slice thick is a picture: seen from the feet, the right side or the front, the head or the front up.
    """
    pixels, spacing, dims = scan.pixels, scan.spacing_mm, len(spec.image_size)
    if pixels.ndim == 4 and dims == 2 and 1 in pixels.shape[1:]:
        thin = max(axis for axis in range(3) if pixels.shape[axis + 1] == 1)
        across, up = (axis for axis in range(3) if axis != thin)
        spacing = (spacing[up], spacing[across]) if spacing else None
        pixels = np.flip(pixels.squeeze(thin + 1).swapaxes(1, 2), (1, 2))
    if pixels.ndim - 1 != dims:
        kinds = {2: "a picture (2-D)", 3: "a volume (3-D)"}
        raise DataError(f"is {kinds[pixels.ndim - 1]} but data.image_size={list(spec.image_size)} has {dims} numbers.")
    return pixels, spacing


def _to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    have = len(pixels)
    if have == channels:
        return pixels
    if have == 3 and channels == 1:
        return np.tensordot(_LUMA, pixels.astype(np.float32), axes=1)[None]
    if have == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=0)
    raise DataError(f"has {have} channels but data.channels={channels}; only grey and colour convert into each other.")


def _rescale(
    pixels: np.ndarray, spacing: tuple[float, ...] | None, spec: DataSpec, *, nearest: bool
) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Pictures: the greatest size that fits, aspect kept. Volumes: to the study's spacing."""
    if len(spec.image_size) == 2:
        height, width = pixels.shape[1:]
        factor = min(spec.image_size[0] / height, spec.image_size[1] / width)
        sized = _resize_plane(pixels, (max(1, round(height * factor)), max(1, round(width * factor))), nearest)
        return sized, tuple(s / factor for s in spacing[:2]) if spacing else None
    if spec.spacing_mm is None:
        return pixels, spacing
    if spacing is None:
        raise DataError("tells no voxel spacing, which data.spacing_mm needs; leave spacing_mm out of the study.")
    return _resample(pixels, np.divide(spacing, spec.spacing_mm), nearest), spec.spacing_mm


def _resize_plane(pixels_CHW: np.ndarray, size: tuple[int, int], nearest: bool) -> np.ndarray:
    """Bilinear over the whole area that a new pixel covers (Pillow's way), or nearest."""
    if pixels_CHW.shape[1:] == size:
        return pixels_CHW
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(plane).resize(size[::-1], method)) for plane in pixels_CHW])


def _resample(volume_CXYZ: np.ndarray, factors: np.ndarray, nearest: bool) -> np.ndarray:
    """Trilinear after the blur that the coarser grid calls for, or nearest; the field of view is kept to half a voxel."""
    shape = np.maximum(1, np.round(np.array(volume_CXYZ.shape[1:]) * factors).astype(int))
    if tuple(shape) == volume_CXYZ.shape[1:]:
        return volume_CXYZ
    from scipy import ndimage

    zoom = shape / np.array(volume_CXYZ.shape[1:])
    blur = np.maximum(0.0, (1 / zoom - 1) / 2)
    channels = []
    for channel in volume_CXYZ:
        smooth = channel if nearest or not blur.any() else ndimage.gaussian_filter(channel, blur)
        channels.append(ndimage.zoom(smooth, zoom, order=0 if nearest else 1, mode="nearest", grid_mode=True))
    return np.stack(channels)


def _normalise(image: np.ndarray, intensity: str, full_scale: float | None) -> np.ndarray:
    """Colours of a picture share one range; the channels of a volume are different measurements and each has its own."""
    if intensity == "unit" and full_scale is not None:
        return image / np.float32(full_scale)
    axes = tuple(range(1, image.ndim)) if image.ndim == 4 else None
    if intensity == "zscore":
        centre = image.mean(axes, keepdims=True, dtype=np.float64)
        width = image.std(axes, keepdims=True, dtype=np.float64)
    else:
        limits = (1, 99) if intensity == "percentile" else (0, 100)
        centre, top = np.percentile(image, limits, axis=axes, keepdims=True)
        width = top - centre
    scaled = (image - centre) / np.where(width > 0, width, 1.0)
    return (np.clip(scaled, 0, 1) if intensity == "percentile" else scaled).astype(np.float32)


def _crop_or_pad(image: np.ndarray, size: tuple[int, ...], background: float) -> np.ndarray:
    """About the centre, along every spatial axis; what is added is `background`."""
    out = np.full((len(image), *size), background, dtype=image.dtype)
    take, put = [slice(None)], [slice(None)]
    for have, want in zip(image.shape[1:], size, strict=True):
        n = min(have, want)
        take.append(slice((have - n) // 2, (have - n) // 2 + n))
        put.append(slice((want - n) // 2, (want - n) // 2 + n))
    out[tuple(put)] = image[tuple(take)]
    return out
