"""Example pictures for the report: a scan, with outlines of the true and the predicted mask, or under a map."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fedimaging.errors import RunError, bad_value
from fedimaging.files import write_whole

# Two of Okabe and Ito's colours (2008): they stay apart on grey for every common kind of colour blindness.
TRUTH_RGB = (86, 180, 233)
PREDICTION_RGB = (230, 159, 0)
MAP_OPACITY = 0.7  # of the orange at the strongest place: the scan stays visible under it
_DASH_PX = 4
_GAP_PX = 4


def example_panel(
    image: np.ndarray, truth_mask: np.ndarray | None, predicted_mask: np.ndarray | None, size: int = 160
) -> Image.Image:
    """One example as RGB, `size` px high: the scan alone, or beside it the scan with outlines when a mask is given.

    `image` is (C, H, W), or (C, X, Y, Z) in RAS order: then one axial slice is shown as a radiologist looks at it,
    patient's right on the left, front at the top. The slice is the middle one of the true mask, else of the predicted
    one, else of the volume. Three channels are shown as RGB, otherwise the first one as grey, between its 0.5th and
    99.5th percentile. Masks are (*spatial) of class numbers, 0 = background: truth is a solid blue outline, prediction
    a dashed orange one on top. The aspect is kept, with black borders. Raises RunError for shapes that do not fit.
    """
    _check(image, {"truth_mask": truth_mask, "predicted_mask": predicted_mask}, size)
    where = _slice_number(image, truth_mask, predicted_mask)
    scan = _letterbox(_to_grey_or_rgb(_flat(image, where)), size, Image.Resampling.BICUBIC)
    if truth_mask is None and predicted_mask is None:
        return Image.fromarray(scan)
    outlined = scan.copy()
    if truth_mask is not None:
        outlined[_outline(truth_mask, where, size)] = TRUTH_RGB
    if predicted_mask is not None:
        outlined[_outline(predicted_mask, where, size) & _dashes(size)] = PREDICTION_RGB
    gap = np.zeros((size, _GAP_PX, 3), dtype=np.uint8)
    return Image.fromarray(np.concatenate([scan, gap, outlined], axis=1))


def map_panel(image: np.ndarray, values: np.ndarray, masks: tuple[np.ndarray | None, ...] = (), size: int = 160) -> Image.Image:
    """The scan, and beside it the scan under a map `values` (*spatial) from 0 to 1: the higher, the more orange.

    A white line with a dark rim runs around what reaches half the map's greatest value, so that a print in grey shows it too. A
    volume is cut where one of `masks` is, else where the map is strongest. Otherwise as `example_panel`.
    """
    _check(image, {"values": values, **{f"mask {k}": mask for k, mask in enumerate(masks)}}, size)
    strongest = (values == values.max()) & (values > 0)
    where = _slice_number(image, *masks, strongest)
    scan = _letterbox(_to_grey_or_rgb(_flat(image, where)), size, Image.Resampling.BICUBIC)
    flat = np.ascontiguousarray(_flat(values, where), dtype=np.float32)
    heat = np.clip(_letterbox(flat, size, Image.Resampling.BILINEAR), 0, 1)
    under = (MAP_OPACITY * heat)[..., None]
    marked = np.round(scan * (1 - under) + np.array(PREDICTION_RGB) * under).astype(np.uint8)
    if strongest.any():
        half = (heat >= values.max() / 2).astype(np.uint8)
        line = _edges(half)
        marked[_edges(1 - half) & _near(line)] = 0
        marked[line] = 255
    gap = np.zeros((size, _GAP_PX, 3), dtype=np.uint8)
    return Image.fromarray(np.concatenate([scan, gap, marked], axis=1))


def with_scale(panel: Image.Image, words: str, top: str = "strongest") -> Image.Image:
    """A map's picture over its scale and a line of words, for a picture that is looked at by itself."""
    width, strip = panel.width, 40
    out = Image.new("RGB", (width, panel.height + strip), (0, 0, 0))
    out.paste(panel, (0, 0))
    ramp = MAP_OPACITY * np.linspace(0, 1, 100)[None, :, None]
    colours = 96 * (1 - ramp) + np.array(PREDICTION_RGB) * ramp
    out.paste(Image.fromarray(np.repeat(colours, 8, axis=0).round().astype(np.uint8)), (16, panel.height + 6))
    draw = ImageDraw.Draw(out)
    draw.line([(66, panel.height + 4), (66, panel.height + 15)], fill=(255, 255, 255))  # the line around half of the strongest
    draw.text((4, panel.height + 5), "0", fill=(255, 255, 255))
    draw.text((122, panel.height + 5), f"{top}; line: half of it", fill=(255, 255, 255))
    draw.text((4, panel.height + 23), words, fill=(255, 255, 255))
    return out


def save_png(image: Image.Image, path: Path) -> None:
    """Write `image` as PNG without metadata, whole or not at all; its folder is made. RunError when it cannot."""
    # A fresh image carries no `info`, so no text of the source file can travel along.
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    write_whole(path, lambda partial: bare.save(partial, format="PNG", optimize=True))


def _check(image: np.ndarray, masks: dict[str, np.ndarray | None], size: int) -> None:
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise RunError(bad_value("image.shape", image.shape, "is not (C, H, W) or (C, X, Y, Z)", "give one scan"))
    if size < 16:
        raise RunError(bad_value("size", size, "is below 16 px", "give a larger size"))
    for name, mask in masks.items():
        if mask is not None and mask.shape != image.shape[1:]:
            rule = f"is not the image's {image.shape[1:]}"
            raise RunError(bad_value(f"{name}.shape", mask.shape, rule, "give a mask of this scan"))


def _slice_number(image: np.ndarray, *masks: np.ndarray | None) -> int | None:
    """Index along Z, None for a flat image."""
    if image.ndim == 3:
        return None
    for mask in masks:
        filled = np.flatnonzero(mask.any(axis=(0, 1))) if mask is not None else np.empty(0, dtype=np.int64)
        if filled.size:
            return int(filled[filled.size // 2])
    return image.shape[-1] // 2


def _flat(array: np.ndarray, where: int | None) -> np.ndarray:
    """(..., H, W): a flat image as it is, a volume (..., X, Y, Z) cut at `where` and turned to the viewer."""
    if where is None:
        return array
    return np.swapaxes(array[..., ::-1, ::-1, where], -1, -2)


def _to_grey_or_rgb(image_CHW: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, windowed over all shown channels together."""
    shown = image_CHW if image_CHW.shape[0] == 3 else np.repeat(image_CHW[:1], 3, axis=0)
    finite = np.nan_to_num(shown.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = np.percentile(finite, [0.5, 99.5])
    if high <= low:  # a few bright pixels on an even ground, or nothing at all
        low, high = float(finite.min()), float(finite.max())
    unit = (finite - low) / max(high - low, 1e-12)
    return np.moveaxis((np.clip(unit, 0, 1) * 255).round().astype(np.uint8), 0, -1)


def _letterbox(array: np.ndarray, size: int, resampling: Image.Resampling) -> np.ndarray:
    """(H, W[, 3]) -> (size, size[, 3]), the aspect kept, centred on zeros."""
    height, width = array.shape[:2]
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize((new_width, new_height), resampling))
    out = np.zeros((size, size, *array.shape[2:]), dtype=array.dtype)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    out[top : top + new_height, left : left + new_width] = resized
    return out


def _outline(mask: np.ndarray, where: int | None, size: int) -> np.ndarray:
    """(size, size) bool: pixels of a class that touch another class or the background."""
    return _edges(_letterbox(_flat(mask, where).astype(np.uint8), size, Image.Resampling.NEAREST))


def _edges(flat: np.ndarray) -> np.ndarray:
    padded = np.pad(flat, 1)
    middle = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (middle > 0) & np.logical_or.reduce([middle != near for near in neighbours])


def _near(line: np.ndarray) -> np.ndarray:
    """The pixels of a line and their four neighbours."""
    padded = np.pad(line, 1)
    return padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _dashes(size: int) -> np.ndarray:
    rows, columns = np.indices((size, size))
    return ((rows + columns) // _DASH_PX) % 2 == 0
