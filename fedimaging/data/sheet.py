"""A contact sheet: scans of a data set side by side, grouped by hospital, with the outlines of their masks."""

import io
from collections.abc import Sequence

import numpy as np

from fedimaging.data.dataset import Dataset

_TILE, _GAP, _CAPTION, _COLUMNS = 128, 4, 16, 8
_BACKGROUND, _TEXT = (24, 26, 30), (225, 228, 232)
_OUTLINES = np.array([(255, 176, 0), (100, 143, 255), (220, 38, 127), (0, 200, 150)], dtype=np.uint8)


def contact_sheet(dataset: Dataset, n: int, sites: np.ndarray | None = None) -> bytes:
    """A PNG of at most `n` scans, an even choice over the hospitals, of each its first patients in turn.

    sites: (N,) names to group and caption by, blank for a scan not to show unless all are blank; without it the column
    `site` where the data set has one. Every tile is
    stretched to its own 1st..99th percentile. Of a volume the axial slice with most mask is shown, else the middle
    one, as radiologists see it: the patient's right on the left, the front up.
    """
    from PIL import Image, ImageDraw

    names = dataset.columns.get("site", np.full(len(dataset), "")) if sites is None else sites
    rows = _chosen(names, dataset.patient_ids, n)
    columns = min(_COLUMNS, max(1, len(rows)))
    across, down = _TILE + _GAP, _TILE + _GAP + _CAPTION
    canvas = Image.new("RGB", (columns * across + _GAP, -(-len(rows) // columns) * down + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for place, row in enumerate(rows):
        left, top = _GAP + place % columns * across, _GAP + place // columns * down
        tile = Image.fromarray(_tile(dataset, row))
        tile.thumbnail((_TILE, _TILE))
        canvas.paste(tile, (left + (_TILE - tile.width) // 2, top + _CAPTION + (_TILE - tile.height) // 2))
        draw.text((left + 2, top + 2), _caption(names[row], dataset.labels, row), fill=_TEXT)
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=True)
    return out.getvalue()


def axial_slice(volume_CXYZ: np.ndarray, mask_XYZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The axial slice of a RAS volume with most mask, else the middle one: (C, rows, columns) and (rows, columns).

    As radiologists see it: the patient's right on the left, the front up.
    """
    level = int((mask_XYZ > 0).sum(axis=(0, 1)).argmax()) if mask_XYZ.any() else volume_CXYZ.shape[3] // 2
    return np.flip(volume_CXYZ[..., level].swapaxes(1, 2), (1, 2)), np.flip(mask_XYZ[..., level].T)


def _chosen(names: np.ndarray, patient_ids: np.ndarray, n: int) -> list[int]:
    """Rows dealt from the hospitals in turn, one scan a patient as long as there are patients; then grouped again."""
    by_site = []
    for name in np.unique(names[names != ""] if (names != "").any() else names):
        rows = np.flatnonzero(names == name)
        _, first = np.unique(patient_ids[rows], return_index=True)
        leading = np.sort(first)
        by_site.append(np.concatenate([rows[leading], np.delete(rows, leading)]))
    quota = [0] * len(by_site)
    while sum(quota) < min(n, sum(map(len, by_site))):
        open_sites = [i for i, rows in enumerate(by_site) if quota[i] < len(rows)]
        quota[min(open_sites, key=lambda i: (quota[i], i))] += 1
    return [int(row) for rows, share in zip(by_site, quota, strict=True) for row in rows[:share]]


def _tile(dataset: Dataset, row: int) -> np.ndarray:
    """(rows, columns, 3) uint8 at a size where an outline is a thin line."""
    image = np.asarray(dataset.images[row])
    mask = np.zeros(image.shape[1:], np.uint8) if dataset.masks is None else np.asarray(dataset.masks[row])
    if image.ndim == 4:
        image, mask = axial_slice(image, mask)
    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / (high - low if high > low else 1.0), 0, 1)
    grey = np.round(255 * (grey if len(grey) == 3 else np.repeat(grey[:1], 3, axis=0))).astype(np.uint8)
    zoom = max(1, _TILE // max(mask.shape))
    picture = _enlarged(np.moveaxis(grey, 0, -1), zoom)
    large = _enlarged(mask, zoom)
    edge = _inner_edge(large)
    picture[edge] = _OUTLINES[(large[edge] - 1) % len(_OUTLINES)]
    return picture


def _enlarged(picture: np.ndarray, zoom: int) -> np.ndarray:
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _inner_edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a class that touch another class or the background."""
    around = np.pad(mask, 1, mode="edge")
    sides: Sequence[np.ndarray] = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    return (mask > 0) & np.any([side != mask for side in sides], axis=0)


def _caption(name: str, labels: np.ndarray | None, row: int) -> str:
    """The hospital and the label, cut to the width of a tile."""
    text = "" if labels is None else " ".join(f"{value:g}" for value in np.atleast_1d(labels[row]))
    room = max(4, 20 - len(text))
    short = name if len(name) <= room else name[: room - 1] + "."
    return f"{short}: {text}" if short and text else short + text
