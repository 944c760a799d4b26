"""What privacy protects, and how it is drawn: Poisson sampling over units, then scans inside each drawn unit.

A unit is a patient with all their scans (the default), or one record. Sampling is over units, never over scans:
a patient with forty scans is drawn as often as a patient with one, and adds one clipped vector either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedimaging.errors import PrivacyError, bad_value, unknown_name

UNITS = ("patient", "record")


@dataclass(frozen=True)
class Units:
    """The rows of a data set, grouped by unit, in a fixed order (sorted patient ids; row order for records).

    `order` (R,) int64 lists the rows unit after unit; the rows of unit u are `order[starts[u]:starts[u + 1]]`.
    """

    order: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, unit: int) -> np.ndarray:
        """The rows (int64) of one unit."""
        return self.order[self.starts[unit] : self.starts[unit + 1]]


@dataclass(frozen=True)
class DrawnScans:
    """One step's scans: `rows` (S,) of the data set, `unit_of_scan` (S,) sorted 0..n_units-1, both int64."""

    rows: np.ndarray
    unit_of_scan: np.ndarray
    n_units: int


def group_units(patient_ids: Sequence[str] | np.ndarray, unit: str) -> Units:
    """Group rows into units. `patient_ids` (R,) names each row's patient; with unit "record" every row is one."""
    n_rows = len(patient_ids)
    if unit == "record":
        return Units(np.arange(n_rows), np.arange(n_rows + 1))
    if unit != "patient":
        raise PrivacyError(unknown_name("privacy.unit", unit, UNITS))
    names, member = np.unique(np.asarray(patient_ids), return_inverse=True)
    counts = np.bincount(member, minlength=len(names))
    return Units(np.argsort(member, kind="stable"), np.concatenate([[0], np.cumsum(counts)]))


def most_records(patient_ids: Sequence[str] | np.ndarray) -> int:
    """The most rows that one patient owns, 0 for no rows: what a record-level plan declares as `scans_per_patient`."""
    return int(np.diff(group_units(patient_ids, "patient").starts).max(initial=0))


def poisson_inclusion(uniforms: np.ndarray, sample_rate: float) -> np.ndarray:
    """Which units a step draws: each one alone, with probability `sample_rate`. `uniforms` (N,) lie in [0, 1).

    There is no cap on the draw and no retry of an empty one: both would need another accountant.
    """
    if not 0 < sample_rate <= 1:
        raise PrivacyError(bad_value("sample_rate", sample_rate, "must be above 0 and at most 1"))
    return uniforms < sample_rate


def draw_scans(
    units: Units, included: np.ndarray, *, max_scans: int, views: int, generator: np.random.Generator
) -> DrawnScans:
    """The scans of the included units: at most `max_scans` each, chosen at random, each repeated `views` times.

    `included` (N,) bool comes from `NoiseSource.inclusion`. Views are rows of the same unit, to be augmented one by one
    before the clip; they cost no privacy. `max_scans` bounds the work; the clip, not this bound, gives the privacy.
    """
    if len(included) != len(units):
        raise PrivacyError(bad_value("included", len(included), f"must have one entry for each of {len(units)} units"))
    drawn = np.flatnonzero(included)
    counts = np.diff(units.starts)[drawn]
    unit_of_row = np.repeat(np.arange(len(drawn)), counts)
    rank_start = np.cumsum(counts) - counts
    rows = units.order[np.arange(len(unit_of_row)) - np.repeat(rank_start - units.starts[drawn], counts)]
    by_chance = np.lexsort((generator.random(len(rows)), unit_of_row))
    kept = by_chance[np.arange(len(rows)) - np.repeat(rank_start, counts) < max_scans]
    kept.sort()  # back to the order of the table: the choice is random, the order is not
    return DrawnScans(np.repeat(rows[kept], views), np.repeat(unit_of_row[kept], views), len(drawn))
