"""`fedimaging data check`: the report on a terminal, and a contact sheet of what could be read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from fedimaging.data.check import check_manifest
from fedimaging.data.dataset import Dataset
from fedimaging.data.manifest import Table, read_pair, read_table
from fedimaging.data.scan import Scan
from fedimaging.data.sheet import axial_slice, contact_sheet
from fedimaging.data.spec import DataSpec, Standard
from fedimaging.data.transforms import prepare_image, prepare_mask
from fedimaging.errors import DataError, StudyError, bad_value, unknown_name
from fedimaging.files import write_whole

_SHEET_SCANS = 48
_MOST_PROBLEMS = 200


def run_check(
    manifest: Path,
    labels: Sequence[str],
    needs_mask: bool,
    classes: int,
    renames: Sequence[str],
    sheet: Path | None,
    echo: Callable[[str], object],
) -> int:
    """Check the manifest, tell the report line by line through `echo`, write the sheet, and return the exit code.

    renames: "standard=column" each. Returns 0 when there are no errors (warnings may be), else 2.
    Raises StudyError for a rename that means nothing, RunError when the sheet cannot be written.
    """
    columns = _renamed(renames)
    multilabel = len(labels) > 1
    report = check_manifest(
        manifest, columns=columns, labels=labels, needs_mask=needs_mask, classes=classes, multilabel=multilabel
    )
    told = report.lines()
    counts = len(report.sites) + 1
    problems = told[:-counts]
    for line in problems[:_MOST_PROBLEMS]:
        echo(line)
    if len(problems) > _MOST_PROBLEMS:
        echo(f"… {len(problems) - _MOST_PROBLEMS} more problems")
    for line in told[-counts:]:
        echo(line)
    if sheet is not None and report.scans:
        picture = manifest_sheet(read_table(manifest, columns, labels, needs_mask=needs_mask), _SHEET_SCANS)
        write_whole(sheet, lambda path: path.write_bytes(picture))
        echo(f"contact sheet: {sheet}")
    return 0 if report.ok else 2


def manifest_sheet(table: Table, n: int) -> bytes:
    """A contact sheet (PNG) of at most `n` rows of the manifest, spread over it; rows that cannot be read are left out.

    Masks are outlined where the row names one that fits its image.
    """
    rows, pictures, masks = [], [], []
    for row in np.unique(np.linspace(0, len(table) - 1, min(n, len(table))).round().astype(int)).tolist():
        shown = _picture(table, row)
        if shown is not None:
            rows.append(row)
            pictures.append(shown[0])
            masks.append(shown[1])
    sites = table.values.get("site", [""] * len(table))
    return contact_sheet(
        Dataset(
            images=np.array(pictures).reshape(len(rows), 1, 128, 128),
            labels=None,
            masks=np.array(masks).reshape(len(rows), 128, 128),
            patient_ids=np.array([table.values["patient_id"][row] for row in rows], dtype=str),
            split=np.full(len(rows), "train"),
            columns={"site": np.array([sites[row] for row in rows], dtype=str)},
            spacing_mm=None,
            fingerprint="",
        ),
        n,
    )


def _picture(table: Table, row: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(1, 128, 128) and (128, 128) of the row, without the mask if that is at fault, None if the image is."""
    spec = DataSpec(source="manifest", path=str(table.path), image_size=(128, 128), intensity="percentile")
    named = bool(table.values.get("mask", [""] * len(table))[row])
    for with_mask in (True, False) if named else (False,):
        try:
            image, mask = read_pair(table, row, with_mask)
            pixels = image.pixels if len(image.pixels) in (1, 3) else image.pixels[:1]
            flat = np.zeros(pixels.shape[1:], np.uint8) if mask is None else mask.pixels[0]
            if pixels.ndim == 4:
                pixels, flat = axial_slice(pixels, flat)
            return prepare_image(Scan(pixels), spec)[0], prepare_mask(Scan(flat[None]), spec)
        except DataError:  # already told, with its line, by check_manifest
            continue
    return None


def _renamed(renames: Sequence[str]) -> Mapping[Standard, str]:
    columns: dict[Standard, str] = {}
    known: dict[str, Standard] = {name: name for name in get_args(Standard)}
    for rename in renames:
        standard, equals, column = rename.partition("=")
        if not equals or not column:
            raise StudyError(bad_value("--column", rename, "must be standard=column", "for example patient_id=case_id"))
        if standard not in known:
            raise StudyError(unknown_name("--column", standard, known))
        columns[known[standard]] = column
    return columns
