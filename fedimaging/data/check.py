"""What is wrong with a manifest, row by row, and who is in it. Everything is read; nothing is written or kept."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from fedimaging.data.manifest import Problem, Table, problems_of, read_pair, read_table, two_values
from fedimaging.data.sheet import contact_sheet
from fedimaging.data.spec import SplitSpec, Standard
from fedimaging.data.splits import split_by_patient
from fedimaging.data.store import in_order
from fedimaging.errors import DataError

__all__ = ["CheckReport", "Problem", "SiteCounts", "check_manifest", "contact_sheet"]

_FEW_PATIENTS = 10


@dataclass(frozen=True)
class SiteCounts:
    """How much one hospital has. `labels` maps each label column to {value: scans}; `masks` counts rows that name a
    mask.
    """

    patients: int
    scans: int
    masks: int
    labels: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class CheckReport:
    """All problems in the order of the lines, and counts per hospital ("" where the manifest has no site column).

    `shapes` counts scans by channels and size as read, e.g. {"1x224x224": 12}; `ok` is that no problem is more than a warning.
    """

    path: Path
    problems: tuple[Problem, ...] = ()
    patients: int = 0
    scans: int = 0
    sites: Mapping[str, SiteCounts] = field(default_factory=dict)
    shapes: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing but warnings."""
        return all(problem.warning for problem in self.problems)

    def lines(self) -> list[str]:
        """The report as text for a terminal: problems first, then counts."""
        told = [_told(problem) for problem in self.problems]
        errors = sum(not problem.warning for problem in self.problems)
        told.append(
            f"{self.path}: {self.scans} scans of {self.patients} patients, {errors} errors, {len(told) - errors} warnings"
        )
        for name, counts in self.sites.items():
            labels = "".join(f"; {label}: {_mix(mix)}" for label, mix in counts.labels.items())
            head = f"  {name or '(no site column)'}: {counts.patients} patients, {counts.scans} scans"
            told.append(f"{head}, {counts.masks} masks{labels}")
        return told


def check_manifest(
    path: Path,
    *,
    columns: Mapping[Standard, str] | None = None,
    labels: Sequence[str] = (),
    needs_mask: bool = False,
    classes: int = 2,
    multilabel: bool = False,
    split: SplitSpec | None = None,
) -> CheckReport:
    """Read every row, image and mask of the manifest and tell all that is wrong, not just the first.

    The arguments are those of a study: columns (standard name -> manifest's name), labels, needs_mask, classes,
    multilabel, split. Errors are what `prepare` would refuse, and a patient at two sites; warnings what it would take
    but what may surprise: a hospital with one class, few patients or none to test on, a patient whose sex changes,
    equal pixels under two patients. A manifest that cannot be read at all gives a report with that one problem.
    """
    try:
        table = read_table(path, columns or {}, labels, needs_mask=needs_mask)
    except DataError as error:
        return CheckReport(path, (Problem(0, "", str(error)),))
    problems = list(problems_of(table, labels, classes, multilabel, needs_mask=needs_mask))
    missing = {(problem.line, problem.column) for problem in problems}
    rows = list(in_order(partial(_read_row, table, needs_mask, classes, missing), range(len(table))))
    problems += [problem for row in rows for problem in row.problems]
    problems += _equal_scans(table, [row.digest for row in rows])
    problems += two_values(table, "site", "privacy is kept per patient at one hospital")
    problems += _warnings(table, labels, split or SplitSpec())
    return CheckReport(
        path=path,
        problems=tuple(sorted(problems, key=lambda problem: (problem.warning, problem.line))),
        patients=len(set(table.values["patient_id"])),
        scans=len(table),
        sites=_counts(table, labels),
        shapes=Counter(row.shape for row in rows if row.shape),
    )


@dataclass(frozen=True)
class _Row:
    """Shape and sha256 of the pixels as read, blank where they could not be."""

    shape: str = ""
    digest: str = ""
    problems: tuple[Problem, ...] = ()


def _read_row(table: Table, needs_mask: bool, classes: int, missing: set[tuple[int, str]], row: int) -> "_Row":
    """What reading the row shows. A file already known to be missing is not told again."""
    line = table.lines[row]
    if (line, "image") in missing:
        return _Row()
    masked = needs_mask and (line, "mask") not in missing
    try:
        image, mask = read_pair(table, row, masked)
    except DataError as error:
        return _Row(problems=(Problem(line, "image", str(error)),))
    shape = "x".join(map(str, image.pixels.shape))
    digest = hashlib.sha256(f"{shape}:{image.pixels.dtype}".encode() + image.pixels.tobytes()).hexdigest()
    if mask is not None and mask.pixels.max() >= classes:
        text = f"mask {table.file('mask', row)} has value {mask.pixels.max()}; allowed are 0 to {classes - 1}."
        return _Row(shape, digest, (Problem(line, "mask", text),))
    return _Row(shape, digest)


def _equal_scans(table: Table, digests: Sequence[str]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for row, digest in enumerate(digests):
        first = seen.setdefault(digest, row)
        here, there = table.values["patient_id"][row], table.values["patient_id"][first]
        if digest and here != there:
            text = (
                f"same pixels as line {table.lines[first]}, but patient {here!r} and not {there!r}: one person twice?"
            )
            yield Problem(table.lines[row], "patient_id", text, warning=True)


def _warnings(table: Table, labels: Sequence[str], spec: SplitSpec) -> Iterator[Problem]:
    for problem in two_values(table, "sex", "is this one person?"):
        yield Problem(problem.line, problem.column, problem.text, warning=True)
    patients = np.array(table.values["patient_id"])
    part = np.array(table.values["split"]) if "split" in table.values else split_by_patient(patients, spec)
    sites = np.array(table.values.get("site", [""] * len(table)))
    for name in np.unique(sites).tolist():
        here = sites == name
        called = f"site {name!r}" if name else "the manifest"
        yield from (
            Problem(0, "site", f"{called} {text}", warning=True) for text in _site_warnings(table, labels, here)
        )
        if not (part[here] == "test").any():
            yield Problem(0, "site", f"{called} has no test patient with this split.", warning=True)


def _site_warnings(table: Table, labels: Sequence[str], here: np.ndarray) -> Iterator[str]:
    patients = len(set(np.array(table.values["patient_id"])[here]))
    if patients < _FEW_PATIENTS:
        yield f"has only {patients} patients; with privacy its noise outweighs what it can teach."
    for label in labels:
        values = set(np.array(table.values[label])[here])
        if len(values) == 1:
            yield f"has only {label}={values.pop()}; AUROC is not defined there."


def _counts(table: Table, labels: Sequence[str]) -> dict[str, SiteCounts]:
    sites = np.array(table.values.get("site", [""] * len(table)))
    masks = np.array(table.values.get("mask", [""] * len(table))) != ""
    counts = {}
    for name in np.unique(sites).tolist():
        here = sites == name
        mixes = {}
        for label in labels:
            values, numbers = np.unique(np.array(table.values[label])[here], return_counts=True)
            mixes[label] = dict(zip(values.tolist(), numbers.tolist(), strict=True))
        patients = len(set(np.array(table.values["patient_id"])[here]))
        counts[name] = SiteCounts(patients, int(here.sum()), int(masks[here].sum()), mixes)
    return counts


def _told(problem: Problem) -> str:
    kind = "warning" if problem.warning else "error"
    return f"{kind}: line {problem.line}: {problem.text}" if problem.line else f"{kind}: {problem.text}"


def _mix(mix: Mapping[str, int]) -> str:
    return ", ".join(f"{value or 'blank'} {number}" for value, number in mix.items())
