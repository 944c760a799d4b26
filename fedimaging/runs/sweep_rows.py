"""From the report of a run to rows of the tidy tables: results.csv (one figure a row) and runs.csv (one run a row)."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedimaging.files import write_text
from fedimaging.results import Interval
from fedimaging.runs.report_text import read_interval
from fedimaging.runs.report_view import is_held_out, part
from fedimaging.runs.sweep_grid import PlannedRun, epsilon_word

ARMS = ("federated", "pooled", "local_only")


@dataclass(frozen=True)
class Row:
    """One figure. `scope` and `name`: `test` (all test patients of the training hospitals), `held_out` (all patients of the
    held-out hospitals; with a name, one of them), `site` NAME, `site_mean` (the plain mean over training hospitals), `group`
    COLUMN=VALUE, or COLUMN for what compares its values (metrics `gap_…` and `p_value`), `attack` NAME [at TARGET], per UNIT
    (a metric with a ceiling has a row `ceiling_METRIC`: what the guarantee allows). `result`: the value with its 95 % interval.
    """

    run: PlannedRun
    arm: str
    scope: str
    name: str
    metric: str
    result: Interval


def rows_of(run: PlannedRun, report: Mapping[str, Any], audit: Mapping[str, Any] | None) -> list[Row]:
    """All rows of a finished run, its baselines and its audit, in a fixed order."""
    own = {
        "test": part(report, "test"), "held_out": part(report, "held_out"), "groups": part(report, "groups"),
        "group_gaps": part(report, "group_gaps"),
        "sites": {name: site.get("test") or {} for name, site in part(report, "sites").items()},
    }
    held_out = {name for name, site in part(report, "sites").items() if is_held_out(site)}
    blocks = {"federated": own, **part(report, "baselines")}
    rows = [
        Row(run, arm, scope, name, metric, result)
        for arm in ARMS if arm in blocks
        for scope, name, metric, result in _figures(blocks[arm], held_out)
    ]
    return rows + [Row(run, "federated", "attack", name, metric, result) for name, metric, result in _attacks(audit or {})]


def _figures(block: Mapping[str, Any], held_out: set[str]) -> Iterator[tuple[str, str, str, Interval]]:
    named = [("test", "", part(block, "test")), ("held_out", "", part(block, "held_out"))]
    sites = part(block, "sites")
    named += [("held_out" if site in held_out else "site", site, sites[site]) for site in sorted(sites)]
    for column, values in part(block, "groups").items():
        named += [("group", f"{column}={value}", table) for value, table in values.items()]
    for scope, name, table in named:
        for metric, raw in table.items():
            result = read_interval(raw)
            if result is not None:
                yield scope, name, metric, result
    training = [table for site, table in sites.items() if site not in held_out]
    for metric in dict.fromkeys(metric for table in training for metric in table):
        yield "site_mean", "", metric, _mean([read_interval(table.get(metric)) for table in training])
    for column, gap in part(block, "group_gaps").items():
        result = read_interval(gap)
        if result is not None:
            yield "group", column, f"gap_{gap['metric']}", result
            if gap["p_value"] is not None:
                p_value = Interval(float(gap["p_value"]), float("nan"), float("nan"), result.n_patients)
                yield "group", column, "p_value", p_value


def _mean(found: Sequence[Interval | None]) -> Interval:
    """Over the hospitals where the metric is defined; without an interval over patients."""
    known = [one for one in found if one is not None and one.value == one.value]
    value = sum(one.value for one in known) / len(known) if known else float("nan")
    return Interval(value, float("nan"), float("nan"), sum(one.n_patients for one in known))


def _attacks(audit: Mapping[str, Any]) -> Iterator[tuple[str, str, Interval]]:
    """Named by their targets only where one attack has several: a target's words may hold the noise, which differs between
    budgets."""
    attacks = audit.get("attacks") or ()
    kinds = [(attack["name"], attack["unit"]) for attack in attacks]
    for attack, kind in zip(attacks, kinds, strict=True):
        target = f" at {attack['target']}" if kinds.count(kind) > 1 else ""
        name = f"{attack['name']}{target}, per {attack['unit']}"
        ceilings = attack.get("ceiling") or {}
        for metric, raw in (attack.get("metrics") or {}).items():
            result = read_interval(raw)
            if result is None:
                continue
            yield name, metric, result
            ceiling = ceilings.get("epsilon" if metric == "epsilon_low" else metric)
            if ceiling is not None:
                yield name, f"ceiling_{metric}", Interval(float(ceiling), float("nan"), float("nan"), 0)


def write_results(path: Path, rows: Sequence[Row], axes: Sequence[str]) -> None:
    """results.csv: the same runs give the same bytes."""
    header = ["run", "epsilon", "unit", "seed", *axes, "arm", "scope", "name", "metric", "value", "low", "high", "n_patients"]
    lines = [
        [*_coordinates(row.run, axes), row.arm, row.scope, row.name, row.metric,
         *(_number(x) for x in (row.result.value, row.result.low, row.result.high)), row.result.n_patients or ""]
        for row in rows
    ]
    write_text(path, _csv(header, lines))


@dataclass(frozen=True)
class RunFacts:
    """What a run cost. `epsilon_spent`: the most of any hospital, as the ledgers say it (more after a crash).
    `noise_multiplier`: the least and the most of any hospital. `seconds`: of the last process that worked at the run.
    `peak_memory_mb`: of that process until then, with the runs that it did before."""

    epsilon_spent: float | None
    delta: float | None
    noise_multiplier: tuple[float, float] | None
    seconds: float
    seconds_training: float
    seconds_baselines: float
    peak_memory_mb: float
    fingerprint: str
    machine: str


def facts_of(report: Mapping[str, Any]) -> RunFacts:
    """Read what a report says of a run's cost."""
    spent = [site["privacy"] for site in part(report, "sites").values() if site.get("privacy")]
    noise = [float(s["noise_multiplier"]) for s in spent]
    clock = part(report, "seconds")
    return RunFacts(
        epsilon_spent=max((float(s["epsilon"]) for s in spent), default=None),
        delta=max((float(s["delta"]) for s in spent), default=None),
        noise_multiplier=(min(noise), max(noise)) if noise else None,
        seconds=float(clock.get("total", float("nan"))), seconds_training=float(clock.get("training", float("nan"))),
        seconds_baselines=float(clock.get("baselines", 0.0)),
        peak_memory_mb=float(report.get("peak_memory_mb") or float("nan")), fingerprint=str(report.get("fingerprint")),
        machine=str(part(report, "machine").get("cpu") or "unknown"),
    )


def write_runs(path: Path, facts: Sequence[tuple[PlannedRun, RunFacts]], axes: Sequence[str]) -> None:
    """runs.csv: one row a run, with what depends on the machine and the day."""
    header = ["run", "epsilon", "unit", "seed", *axes, "epsilon_spent", "delta", "noise_multiplier_least",
              "noise_multiplier_most", "seconds", "seconds_training", "seconds_baselines", "peak_memory_mb", "fingerprint",
              "machine"]
    lines = []
    for run, fact in facts:
        least, most = fact.noise_multiplier or (None, None)
        figures = (fact.epsilon_spent, fact.delta, least, most, fact.seconds, fact.seconds_training, fact.seconds_baselines,
                   fact.peak_memory_mb)
        lines.append([*_coordinates(run, axes), *(_number(x) for x in figures), fact.fingerprint, fact.machine])
    write_text(path, _csv(header, lines))


def _coordinates(run: PlannedRun, axes: Sequence[str]) -> list[object]:
    keys = dict(run.keys)
    return [run.name, epsilon_word(run.epsilon), run.unit, run.seed, *(keys.get(axis, "") for axis in axes)]


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.10g}"


def _csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *lines])
    return text.getvalue()
