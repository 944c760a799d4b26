"""The manifest: a CSV with one row a scan, and everything that can be said about it without decoding a pixel.

Columns: image, patient_id, mask (segmentation), the label columns of the study, and optionally site, sex, age, split;
any other column is kept. Paths are relative to the manifest's own folder. `DataSpec.columns` gives other names for
these.
"""

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np

from fedimaging.data.dataset import SPLITS
from fedimaging.data.hashing import digests
from fedimaging.data.readers import read_mask, read_scan
from fedimaging.data.scan import Scan, check_pair
from fedimaging.data.spec import DataSpec, Standard
from fedimaging.data.store import Pixels, key_of
from fedimaging.data.transforms import prepare_image, prepare_mask
from fedimaging.errors import DataError, unknown_name

T = TypeVar("T")
STANDARD: tuple[Standard, ...] = get_args(Standard)
Keep = Callable[[Mapping[str, Sequence[str]]], Sequence[bool]]
"""Given the columns of a manifest, one text a row: which rows to keep. The others are dropped before any file is opened."""
_NOT_KEPT = ("image", "mask", "patient_id", "split")
_SPLIT_NAMES = {name: name for name in SPLITS} | {"training": "train", "valid": "validation", "val": "validation"}


@dataclass(frozen=True)
class Problem:
    """One fault: line of the manifest (0: the file as a whole), its column, what is wrong. A warning lets work go on."""

    line: int
    column: str
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """The manifest as read: `values` maps a standard name, or a column's own name, to one text a row."""

    path: Path
    lines: list[int]
    values: dict[str, list[str]]
    faults: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """For error texts: the manifest and the line, as an editor counts them."""
        return f"{self.path} line {self.lines[row]}"

    def file(self, column: str, row: int) -> Path:
        """The path in a column of files, relative paths taken from the manifest's folder."""
        return self._folder / self.values[column][row]

    def only(self, keep: Sequence[bool]) -> "Table":
        """The rows to keep, in their order."""
        def kept(texts: list[T]) -> list[T]:
            return [text for text, stays in zip(texts, keep, strict=True) if stays]

        lines = kept(self.lines)
        faults = [fault for fault in self.faults if fault.line in set(lines)]
        return replace(self, lines=lines, values={name: kept(texts) for name, texts in self.values.items()}, faults=faults)

    @cached_property
    def _folder(self) -> Path:
        return self.path.parent


def read_table(
    path: Path, columns: Mapping[Standard, str], labels: Sequence[str] = (), *, needs_mask: bool = False,
    keep: Keep | None = None,
) -> Table:
    """Read the CSV (comma, semicolon or tab; UTF-8) and find its columns.

    columns: standard name -> the manifest's name for it, where they differ. keep: drop rows. Raises DataError for a
    missing, unreadable or empty file and for a column that is not there, naming the nearest one that is.
    """
    header, rows = _read_csv(path)
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"{path} has more than one column {doubled[0]!r}; rename one.")
    own: dict[str, str] = {name: columns.get(name, name) for name in STANDARD}
    needed = ["image", "patient_id", *(["mask"] if needs_mask else []), *(name for name in STANDARD if name in columns)]
    for name in [*(own[standard] for standard in needed), *labels]:
        if name not in header:
            raise DataError(f"{path}: {unknown_name('column', name, header)}{_patient_hint(name, own, columns)}")
    if not rows:
        raise DataError(f"{path} has a header but no row; it needs one row a scan.")
    faults = [
        Problem(
            line, "", f"has {len(cells)} cells but the header {len(header)}; quote texts that contain the separator."
        )
        for line, cells in rows
        if len(cells) != len(header)
    ]
    padded = [(*cells, *[""] * len(header))[: len(header)] for _, cells in rows]
    by_name = {name: [cells[i].strip() for cells in padded] for i, name in enumerate(header)}
    values = by_name | {standard: by_name[name] for standard, name in own.items() if name in by_name}
    hidden = {name for standard, name in own.items() if name != standard and name not in own and name not in labels}
    table = Table(path, [line for line, _ in rows], {k: v for k, v in values.items() if k not in hidden}, faults)
    return table if keep is None else table.only(keep(table.values))


def _patient_hint(name: str, own: Mapping[str, str], columns: Mapping[Standard, str]) -> str:
    if name == own["patient_id"] and "patient_id" not in columns:
        return (
            " Privacy is per patient: name the column that tells patients apart with data.columns: {patient_id: ...}."
        )
    return ""


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and (line number, cells) of every row that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            separator = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=separator, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except FileNotFoundError as error:
        raise DataError(f"manifest {path} is missing; data.path is relative to data.root.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"manifest {path} cannot be read as a UTF-8 CSV: {error}.") from error
    if not header:
        raise DataError(f"manifest {path} is empty; its first line names the columns.")
    return header, rows


def problems_of(
    table: Table, labels: Sequence[str], classes: int, multilabel: bool, *, needs_mask: bool
) -> Iterator[Problem]:
    """All faults that show without decoding a pixel, in the order of the rows, then those between rows."""
    yield from table.faults
    files = ("image", "mask") if needs_mask else ("image",)
    limit = 2 if multilabel or len(labels) > 1 else classes
    for row, line in enumerate(table.lines):
        for column in ("patient_id", *files):
            if not table.values[column][row]:
                yield Problem(line, column, f"{column} is blank; every row needs one here.")
            elif column in files and not os.path.exists(table.file(column, row)):  # Path.exists raises for a name too long
                yield Problem(line, column, f"{column} {table.file(column, row)} is missing.")
        for label in labels:
            fault = _label_fault(table.values[label][row], limit)
            if fault:
                yield Problem(line, label, f"{label}={table.values[label][row][:40]!r} {fault}")
        if "split" in table.values and table.values["split"][row].lower() not in _SPLIT_NAMES:
            given = table.values["split"][row]
            yield Problem(
                line, "split", f"split={given!r} is not train, validation or test; fill it in every row or drop it."
            )
    yield from two_values(table, "split", "a patient's scans belong in one split", normal=_SPLIT_NAMES)
    yield from _shared_images(table)


def two_values(table: Table, column: str, rule: str, normal: Mapping[str, str] | None = None) -> Iterator[Problem]:
    """Patients whose rows disagree in a column, at the first row that does."""
    seen: dict[str, tuple[str, int]] = {}
    told: set[str] = set()
    for patient, value, line in zip(
        table.values["patient_id"], table.values.get(column, []), table.lines, strict=False
    ):
        value = (normal or {}).get(value.lower(), value)
        before, first = seen.setdefault(patient, (value, line))
        if patient and value != before and patient not in told:
            told.add(patient)
            yield Problem(
                line, column, f"patient {patient!r} has {column} {value!r} here but {before!r} on line {first}; {rule}."
            )


def _shared_images(table: Table) -> Iterator[Problem]:
    seen: dict[str, tuple[str, int]] = {}
    for image, patient, line in zip(table.values["image"], table.values["patient_id"], table.lines, strict=True):
        before, first = seen.setdefault(image, (patient, line))
        if image and patient != before:
            text = f"image {image} is patient {patient!r} here but {before!r} on line {first}; privacy is per patient."
            yield Problem(line, "image", text)


def _label_fault(text: str, limit: int) -> str:
    """What is wrong with a label, or nothing. 1 and 1.0 are the same label."""
    if not re.fullmatch(r"[+-]?[0-9]{1,15}(\.0*)?", text):
        return f"is not a whole number; allowed are 0 to {limit - 1}."
    return "" if 0 <= int(float(text)) < limit else f"is out of range; allowed are 0 to {limit - 1}."


def raise_first(table: Table, problems: Iterable[Problem]) -> None:
    """Raise DataError for the first problem that is no warning, telling how many more there are."""
    errors = [problem for problem in problems if not problem.warning]
    if errors:
        more = f" ({len(errors) - 1} more; `fedimaging data check` lists all)" if len(errors) > 1 else ""
        raise DataError(f"{table.path} line {errors[0].line}: {errors[0].text}{more}")


def labels_of(table: Table, labels: Sequence[str]) -> np.ndarray | None:
    """(N, L) int64 of the label columns, which `problems_of` has passed; None without labels."""
    if not labels:
        return None
    return np.array([[int(float(text)) for text in table.values[name]] for name in labels], dtype=np.int64).T


def split_of(table: Table) -> np.ndarray | None:
    """(N,) train, validation or test of the split column; None without that column."""
    if "split" not in table.values:
        return None
    return np.array([_SPLIT_NAMES[text.lower()] for text in table.values["split"]], dtype="U10")


def kept_columns(table: Table) -> dict[str, np.ndarray]:
    """Every column but the files, the patient and the split, as (N,) str."""
    return {name: np.array(texts) for name, texts in table.values.items() if name not in _NOT_KEPT}


def content_key(table: Table, needs_mask: bool, cache: Path) -> str:
    """Hash over the contents of all images, and masks if needed, in the order of the rows."""
    columns = ("image", "mask") if needs_mask else ("image",)
    return key_of(
        "manifest", [digests([table.file(name, row) for row in range(len(table))], cache) for name in columns]
    )


def read_pair(table: Table, row: int, needs_mask: bool) -> tuple[Scan, Scan | None]:
    """The row's image and mask, checked against each other. Raises DataError naming the file that is at fault."""
    image = read_scan(table.file("image", row))
    if not needs_mask:
        return image, None
    mask = read_mask(table.file("mask", row))
    try:
        check_pair(image, mask)
    except DataError as error:
        raise DataError(f"mask {table.file('mask', row)} {error}") from error
    return image, mask


def decode(table: Table, spec: DataSpec, needs_mask: bool, row: int) -> Pixels:
    """The row's scan as the study wants it. Raises DataError naming manifest, line and file."""
    try:
        image, mask = read_pair(table, row, needs_mask)
        try:
            prepared, spacing = prepare_image(image, spec)
        except DataError as error:
            raise DataError(f"{table.file('image', row)} {error}") from error
        return Pixels(prepared, prepare_mask(mask, spec) if mask else None, spacing)
    except DataError as error:
        raise DataError(f"{table.where(row)}: {error}") from error
