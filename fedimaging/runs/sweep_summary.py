"""What the runs of a sweep say together: per cell a mean over seeds with its interval, and what privacy costs.

Two intervals answer two questions. Over seeds (Student's t): how much would the mean move if the training were repeated on
these patients. Over patients (the mean of the runs' bootstrap intervals): how much would it move with other test patients.
Student's t knows nothing of a metric's range: over few seeds its interval may leave it, and is then cut at the range's end.
No value that the metric can take is lost by that, so the interval covers as often as before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from fedimaging.results import Interval
from fedimaging.runs.report_text import MetricWords, metric_words
from fedimaging.runs.sweep_grid import PlannedRun, keys_at
from fedimaging.runs.sweep_rows import ARMS, Row

_Place = tuple[str, str]  # scope and name
_Range = tuple[float, float]
_ANY: _Range = (-math.inf, math.inf)
_SHARE: _Range = (0.0, 1.0)
_REFERENCES = {"non_private": "federated", "pooled": "pooled", "local_only": "local_only"}  # name of the gap -> arm


@dataclass(frozen=True)
class Estimate:
    """A mean over `n_seeds` runs. `low`, `high`: 95 % interval over seeds, within the metric's range; `patients_low`,
    `patients_high`: the mean of the runs' 95 % intervals over patients. None where not known: one seed has no interval over
    seeds."""

    mean: float
    low: float | None
    high: float | None
    patients_low: float | None
    patients_high: float | None
    n_seeds: int
    n_patients: int

    @classmethod
    def of(cls, results: Sequence[Interval], within: _Range = _ANY) -> "Estimate | None":
        """`within`: the values that can be. None where no run has a value."""
        known = [one for one in results if math.isfinite(one.value)]
        if not known:
            return None
        low, high = t_interval([one.value for one in known], within)
        spans = [one for one in known if math.isfinite(one.low) and math.isfinite(one.high)]
        every = len(spans) == len(known)
        return cls(
            mean(one.value for one in known), low, high,
            mean(one.low for one in spans) if every else None, mean(one.high for one in spans) if every else None,
            len(known), max(one.n_patients for one in known),
        )


@dataclass(frozen=True)
class Cell:
    """All seeds of one budget, unit, choice of keys and arm: estimates of the primary metric, unless said otherwise.

    `gaps`: how much worse than `non_private`, `pooled` and `local_only`, over all test patients of the training hospitals;
    where one of the two is `local_only`, in the plain mean over these hospitals (scores of different models do not rank
    patients of different hospitals among each other): positive is worse, also where a lower value is better; paired by seed.
    `group_gaps`: column -> best group minus worst; `gap_p_values`: column -> its permutation p-value in each run.
    `attacks`: attack -> metric -> estimate.
    """

    epsilon: float
    unit: str
    keys: tuple[tuple[str, str], ...]
    arm: str
    places: Mapping[_Place, Estimate]
    gaps: Mapping[str, Estimate]
    group_gaps: Mapping[str, Estimate]
    gap_p_values: Mapping[str, tuple[float, ...]]
    attacks: Mapping[str, Mapping[str, Estimate]]
    lower_is_better: bool

    @property
    def test(self) -> Estimate | None:
        """Over all test patients of the training hospitals."""
        return self.places.get(("test", ""))

    @property
    def site_mean(self) -> Estimate | None:
        """The plain mean over the training hospitals."""
        return self.places.get(("site_mean", ""))

    def of(self, scope: str) -> dict[str, Estimate]:
        """Name -> estimate of a scope."""
        return {name: one for (where, name), one in self.places.items() if where == scope and name}

    def worst(self, scope: str) -> str | None:
        """The site or group with the worst mean."""
        found = self.of(scope)
        sign = -1 if self.lower_is_better else 1
        return min(found, key=lambda name: sign * found[name].mean, default=None)


def t_interval(values: Sequence[float], within: _Range = _ANY) -> tuple[float | None, float | None]:
    """95 % interval of the mean by Student's t, cut at the ends of `within`; none for fewer than two values."""
    if len(values) < 2:
        return None, None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return max(mean(values) - half, within[0]), min(mean(values) + half, within[1])


def cells_of(rows: Sequence[Row], metric: str) -> list[Cell]:
    """The cells in the order of their runs, federated first; `metric` is the primary one."""
    groups: dict[tuple[str, Any], list[Row]] = {}
    for arm in ARMS:
        for row in rows:
            if row.arm == arm:
                groups.setdefault((arm, row.run.cell), []).append(row)
    values = {
        (row.scope, row.arm, row.run.cell, row.run.seed): row.result.value
        for row in rows if row.scope in ("test", "site_mean") and row.metric == metric and math.isfinite(row.result.value)
    }
    return [_cell(arm, mine, metric, values) for (arm, _), mine in groups.items()]


def _cell(arm: str, rows: Sequence[Row], metric: str, values: Mapping[Any, float]) -> Cell:
    run = rows[0].run
    places: dict[_Place, list[Interval]] = {}
    gaps: dict[str, list[Interval]] = {}
    attacks: dict[str, dict[str, list[Interval]]] = {}
    p_values: dict[str, tuple[float, ...]] = {}
    for row in rows:
        if row.scope == "attack":
            attacks.setdefault(row.name, {}).setdefault(row.metric, []).append(row.result)
        elif row.metric == metric:
            places.setdefault((row.scope, row.name), []).append(row.result)
        elif row.metric == f"gap_{metric}":
            gaps.setdefault(row.name, []).append(row.result)
        elif row.metric == "p_value":
            p_values[row.name] = (*p_values.get(row.name, ()), row.result.value)
    words = metric_words(metric)
    within = _SHARE if words.bounded else _ANY
    return Cell(
        run.epsilon, run.unit, run.keys, arm, _estimates(places, within), _gaps(arm, run, values, words),
        _estimates(gaps, within), p_values, {name: _attack(found) for name, found in attacks.items()}, words.lower_is_better,
    )


def _estimates(found: Mapping[Any, Sequence[Interval]], within: _Range) -> dict[Any, Estimate]:
    made = {key: Estimate.of(results, within) for key, results in found.items()}
    return {key: one for key, one in made.items() if one is not None}


def _attack(found: Mapping[str, Sequence[Interval]]) -> dict[str, Estimate]:
    """Areas and rates are shares; lower bounds on epsilon, SSIM and PSNR are not."""
    made = {
        metric: Estimate.of(results, _SHARE if metric.startswith(("auc", "tpr_")) else _ANY) for metric, results in found.items()
    }
    return {metric: one for metric, one in made.items() if one is not None}


def _gaps(arm: str, run: PlannedRun, values: Mapping[Any, float], words: MetricWords) -> dict[str, Estimate]:
    """Paired by seed: the same seed, without privacy or otherwise trained."""
    reference = (math.inf, "", keys_at(math.inf, run.keys))
    gaps = {}
    for name, other in _REFERENCES.items():
        scope = "site_mean" if "local_only" in (arm, other) else "test"
        if (arm, run.cell) == (other, reference):
            continue
        pairs = [
            (values[scope, other, reference, seed], value) for (where, whose, cell, seed), value in values.items()
            if (where, whose, cell) == (scope, arm, run.cell) and (scope, other, reference, seed) in values
        ]
        worse = [value - ref if words.lower_is_better else ref - value for ref, value in pairs]
        within = (-1.0, 1.0) if words.bounded else _ANY
        one = Estimate.of([Interval(value, math.nan, math.nan, 0) for value in worse], within)
        if one is not None:
            gaps[name] = one
    return gaps


def as_json(cells: Sequence[Cell], metric: str, axes: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """summary.json."""
    return {
        "schema": "fedimaging-sweep-summary/1", "metric": metric, "lower_is_better": metric_words(metric).lower_is_better,
        "keys": list(axes), "seeds": list(seeds),
        "gap": "how much worse than the reference, positive is worse; paired by seed; local_only in the mean over hospitals",
        "cells": [_cell_json(cell) for cell in cells],
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    def of(found: Mapping[str, Estimate]) -> dict[str, Any]:
        return {name: asdict(one) for name, one in found.items()}

    held_out, site_mean = cell.places.get(("held_out", "")), cell.site_mean
    return {
        "epsilon": "inf" if math.isinf(cell.epsilon) else cell.epsilon, "unit": cell.unit or None, "keys": dict(cell.keys),
        "arm": cell.arm, "test": asdict(cell.test) if cell.test else None,
        "site_mean": asdict(site_mean) if site_mean else None,
        "held_out": asdict(held_out) if held_out else None, "held_out_sites": of(cell.of("held_out")),
        "sites": of(cell.of("site")), "groups": of(cell.of("group")), "gaps": of(cell.gaps),
        "worst_site": cell.worst("site"), "worst_group": cell.worst("group"), "group_gaps": of(cell.group_gaps),
        "group_gap_p_values": {name: list(values) for name, values in cell.gap_p_values.items()},
        "attacks": {name: of(found) for name, found in cell.attacks.items()},
    }
