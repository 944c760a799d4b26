"""Has what the model sees, says or achieves moved since it was released? Tests of new scans against aggregates alone.

Patients are the units, not scans. The reference gives shares of scans in public cells and how many patients they are of; it was
rounded, and how its patients' scans hang together is unknown. The null distribution is therefore drawn, not looked up: patients
with as many scans as the new ones fall into a cell with all their scans at once (the worst case), the reference is rounded as it
was written, and the statistic is computed from these as from the data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from fedimaging.results import Interval

Level = Literal["none", "watch", "act"]
LEVELS: tuple[Level, ...] = ("none", "watch", "act")
WATCH_RATE, ACT_RATE = 0.05, 0.01
"""How often a look at new patients of the same kind raises such a level or a higher one, at most."""
LARGE_PSI = 0.25
"""From here on a population stability index is called large (the customary limit, after Siddiqi 2006)."""
DRAWS = 20_000

_CELLS = 10  # of a comparison: more would dilute a shift; a stability index is customarily over ten
_ROUNDED = 0.01  # shares in the reference are multiples of this


@dataclass(frozen=True)
class Drift:
    """One comparison. `what`: input, scores, performance; `group`: (column, value), None for everybody.

    before, after: medians (input; the reference's by its cells), means by the middles of the cells (scores), or the metric.
    psi: population stability index; NaN for performance. p_value: alone; `adjusted`: among all comparisons of the look, filled
    in by `judged`. edges, shares: of the cells, at release and now. Of performance only: `interval`, 95 %, now; `error`: standard
    error of the change; `least`: the smallest change for the worse that could be told from chance here.
    """

    what: str
    name: str
    group: tuple[str, str] | None
    before: float
    after: float
    psi: float
    p_value: float
    n_patients: int
    adjusted: float = math.nan
    level: Level = "none"
    edges: tuple[float, ...] = ()
    shares: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    interval: tuple[float, float] | None = None
    error: float = math.nan
    least: float = math.nan


def histogram_drift(
    what: str, name: str, group: tuple[str, str] | None, reference: Mapping[str, Any], n_reference: int, values: np.ndarray,
    patients: np.ndarray, *, draws: int = DRAWS, seed: int = 0,
) -> Drift:
    """Compare values (N,) of scans of patients (N,) with a histogram {"edges", "shares"} of `n_reference` patients.

    Neighbouring cells are joined to at most `_CELLS`. The statistic is the sum over cells of the squared difference of shares
    by the pooled share; values beyond the edges count in the outermost cells. `n_reference` may be rounded down: fewer
    patients only make the test slower to speak.
    """
    fine_edges, fine = np.asarray(reference["edges"], float), np.asarray(reference["shares"], float)
    edges, before = _joined(fine_edges, fine / fine.sum())
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(before) - 1)
    after = np.bincount(place, minlength=len(before)) / len(values)
    scans = np.unique(patients, return_counts=True)[1]
    pooled = (n_reference * before + len(scans) * after) / (n_reference + len(scans))
    found = _statistic(before, after, pooled)
    p_value = _p_value(float(found), pooled, n_reference, scans, draws, np.random.default_rng(seed))
    if what == "scores":
        middles = (edges[1:] + edges[:-1]) / 2
        typical = float(before @ middles), float(after @ middles)
    else:
        typical = median_of(fine_edges, fine / fine.sum()), float(np.median(values))
    return Drift(
        what, name, group, *typical, stability_index(before, after), p_value, len(scans), edges=tuple(edges.tolist()),
        shares=(tuple(before.tolist()), tuple(after.tolist())),
    )


def median_of(edges: np.ndarray, shares: np.ndarray) -> float:
    """Of a histogram, linear within its cell: outer cells reach far, so that a mean by middles would be pulled along."""
    return float(np.interp(0.5, np.concatenate([[0.0], np.cumsum(shares)]), edges))


def stability_index(before: np.ndarray, after: np.ndarray, least: float = _ROUNDED / 2) -> float:
    """Population stability index of two rows of shares; shares below `least` count as that."""
    a, b = np.maximum(before, least), np.maximum(after, least)
    return float(((b - a) * np.log(b / a)).sum())


def performance_drift(
    name: str, group: tuple[str, str] | None, reference: Mapping[str, float | None], found: Interval, *, lower_is_better: bool
) -> Drift | None:
    """Is a metric worse than at release? One-sided, by the 95 % intervals over patients of both.

    None where either has no interval, or one without width: then nothing can be said.
    """
    before, after = float(reference["value"] or 0.0), float(found.value)
    limits = [reference.get("low"), reference.get("high"), found.low, found.high]
    if any(limit is None for limit in limits):
        return None
    low, high, new_low, new_high = (float(limit) for limit in limits if limit is not None)
    spread = math.hypot(high - low, new_high - new_low) / 3.92
    if not (spread > 0 and math.isfinite(after - before) and math.isfinite(spread)):
        return None
    worse = (after - before) if lower_is_better else (before - after)
    p_value = 0.5 * math.erfc(worse / spread / math.sqrt(2))
    return Drift("performance", name, group, before, after, math.nan, p_value, found.n_patients,
                 interval=(found.low, found.high), error=spread)


def judged(found: Sequence[Drift]) -> list[Drift]:
    """With levels. Everybody and the groups are two families; each is held to half of the rates by Holm's procedure (1979), so
    that whatever the comparisons have to do with each other, `WATCH_RATE` and `ACT_RATE` hold for the look as a whole.

    `act` also asks that it matters: performance is worse, or an index is large; `watch` is all else that is not chance.
    """
    family = [[one for one in found if one.group is None], [one for one in found if one.group is not None]]
    families = sum(bool(members) for members in family)
    sizes = {id(one): len(members) * families for members in family for one in members}
    adjusted = {id(one): p for members in family for one, p in zip(members, holm(members), strict=True)}
    return [_with_level(one, min(1.0, adjusted[id(one)] * families), sizes[id(one)]) for one in found]


def holm(found: Sequence[Drift]) -> list[float]:
    """p values adjusted for how many there are, in the order given."""
    order = np.argsort([one.p_value for one in found], kind="stable")
    adjusted, last = np.empty(len(found)), 0.0
    for rank, place in enumerate(order):
        last = max(last, min(1.0, (len(found) - rank) * found[place].p_value))
        adjusted[place] = last
    return [float(value) for value in adjusted]


def worst(levels: Sequence[Level]) -> Level:
    """The highest level; none where there are none."""
    return max(levels, key=LEVELS.index, default="none")


def _with_level(one: Drift, adjusted: float, comparisons: int) -> Drift:
    least = one.error * NormalDist().inv_cdf(1 - WATCH_RATE / comparisons)
    matters = one.what == "performance" or one.psi >= LARGE_PSI
    level: Level = "act" if adjusted < ACT_RATE and matters else "watch" if adjusted < WATCH_RATE else "none"
    return Drift(**{**vars(one), "adjusted": adjusted, "level": level, "least": least})


def _joined(edges: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges and shares of at most `_CELLS` cells, about alike at release; where they are cut follows from the reference alone."""
    cell = np.minimum((np.cumsum(shares) - shares / 2) * _CELLS, _CELLS - 1).astype(int)
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    return np.append(edges[first], edges[-1]), np.add.reduceat(shares, first)


def _statistic(before: np.ndarray, after: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    return np.asarray(((after - before) ** 2 / np.maximum(pooled, _ROUNDED / 2)).sum(-1))


def _p_value(
    found: float, pooled: np.ndarray, n_reference: int, scans: np.ndarray, draws: int, rng: np.random.Generator
) -> float:
    """A tenth of the draws is enough where that many reach what was found that no level is near."""
    hits = done = 0
    for count in (draws // 10, draws - draws // 10):
        hits += int(np.count_nonzero(_null(pooled, n_reference, scans, count, rng) >= found - 1e-12))
        done += count
        if hits > 2 * WATCH_RATE * done:
            break
    return (1 + hits) / (1 + done)


def _null(pooled: np.ndarray, n_reference: int, scans: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws,) of the statistic where both are drawn from `pooled`; `scans`: of each new patient."""
    sizes, patients = np.unique(scans, return_counts=True)
    of_reference = np.maximum(0, np.round(n_reference * patients / patients.sum())).astype(int)
    of_reference[np.argmax(patients)] += n_reference - of_reference.sum()
    after = _clustered(pooled, sizes, patients, draws, rng)
    before = np.round(_clustered(pooled, sizes, of_reference, draws, rng) / _ROUNDED) * _ROUNDED
    before = before / before.sum(1, keepdims=True)
    weights = np.array([n_reference, len(scans)]) / (n_reference + len(scans))
    return _statistic(before, after, weights[0] * before + weights[1] * after)


def _clustered(share: np.ndarray, sizes: np.ndarray, patients: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, C) shares of scans, of so many patients with so many scans each, all scans of a patient in one cell."""
    counts = sum(size * rng.multinomial(n, share, draws) for size, n in zip(sizes, patients, strict=True))
    return np.asarray(counts / float(sizes @ patients))
