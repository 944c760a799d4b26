"""Histograms and counts of patients that show no cell below a minimum count.

Edges are public. Neighbouring cells are put together until each holds the minimum of patients; shares are rounded to a
hundredth; where any group or hospital is below the minimum, all counts of the release are rounded down to a multiple of it,
so that what is left out cannot be found by subtraction.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Counting:
    """How counts of patients are written. `coarse`: some cell of the release is below `least`."""

    least: int
    coarse: bool

    @classmethod
    def over(cls, least: int, counts: Iterable[int]) -> "Counting":
        """For a release whose cells have these counts."""
        return cls(least, any(0 < count < least for count in counts))

    def number(self, count: int | None) -> int | None:
        """None below the minimum (and for an unknown count); exact, or rounded down where coarse."""
        if count is None or count < self.least:
            return None
        return count // self.least * self.least if self.coarse else count

    def words(self, count: int | None) -> str:
        """`fewer than 10`; `27`, or `at least 20` where coarse."""
        if count is None:
            return "unknown"
        if count == 0:
            return "none"
        if count < self.least:
            return f"fewer than {self.least}"
        return f"at least {self.number(count)}" if self.coarse else f"{count:,}"


def histogram(values: np.ndarray, patients: np.ndarray, edges: np.ndarray, least: int) -> dict[str, Any] | None:
    """{"edges": (C + 1), "shares": (C)}: of the values (N,) in each cell, of which each holds at least `least` patients.

    edges (E,): public, rising; values beyond are counted in the outermost cells. Those that remain are a subset of them.
    None where there are fewer patients than `least`.
    """
    if len(np.unique(patients)) < least:
        return None
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    cuts, first = [0], 0
    for cell in range(len(edges) - 1):
        if len(np.unique(patients[(place >= first) & (place <= cell)])) >= least:
            cuts.append(cell + 1)
            first = cell + 1
    cuts[-1] = len(edges) - 1  # what is left over at the end joins the last cell
    counts = [int(((place >= a) & (place < b)).sum()) for a, b in pairwise(cuts)]
    shares = [round(count / len(values), 2) for count in counts]
    return {"edges": [round(float(edges[cut]), 6) for cut in cuts], "shares": shares}


def shown_groups(of_row: np.ndarray, patients: np.ndarray, hidden: tuple[str, ...], least: int) -> list[str]:
    """Which values of a column (N,) may be shown: those with `least` patients or more. Where what is left out would be fewer
    than that (but somebody), the smallest that could be shown is left out with it. `hidden`: values never shown."""
    sizes = {name: len(np.unique(patients[of_row == name])) for name in np.unique(of_row).tolist()}
    shown = sorted((name for name in sizes if name not in hidden and sizes[name] >= least), key=lambda name: (sizes[name], name))
    left = sum(sizes.values()) - sum(sizes[name] for name in shown)
    if 0 < left < least and shown:
        shown = shown[1:]
    return sorted(shown)
