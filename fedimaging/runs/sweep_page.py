"""The page of a sweep: one self-contained HTML file in the look of a run's report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fedimaging.files import write_text
from fedimaging.runs import sweep_figures as figures
from fedimaging.runs.report import render
from fedimaging.runs.report_privacy import UNITS, Band
from fedimaging.runs.report_text import count_text, delta_text, duration_text, epsilon_text, metric_words
from fedimaging.runs.report_view import Card, part
from fedimaging.runs.sweep_grid import PlannedRun, epsilon_word
from fedimaging.runs.sweep_rows import RunFacts
from fedimaging.runs.sweep_summary import Cell
from fedimaging.runs.sweep_tables import SweepTable, figure_over_patients, latex, markdown

_MOST_VARIANTS = 6  # units and choices of keys whose hospitals and groups are drawn


@dataclass(frozen=True)
class SweepFacts:
    """All that the page says. `planned`: how many runs the sweep has; `reports`, `facts`: of those that are finished."""

    planned: int
    reports: tuple[tuple[PlannedRun, Mapping[str, Any]], ...]
    facts: tuple[tuple[PlannedRun, RunFacts], ...]
    cells: tuple[Cell, ...]
    metric: str
    table: SweepTable
    audits: tuple[tuple[PlannedRun, Mapping[str, Any]], ...]
    violations: tuple[str, ...]
    tuned_on: str


def write_sweep_page(path: Path, facts: SweepFacts) -> None:
    """Write the page. Error: RunError where the file cannot be written."""
    report = facts.reports[0][1]
    variants = figures.variants_of(facts.cells)
    metric = metric_words(facts.metric)
    write_text(path, render(
        "sweep.html.j2", title=f"{report.get('name') or 'Study'}: what privacy costs", lead=_lead(facts), bands=_bands(facts),
        cards=_cards(facts), metric=metric, table=facts.table, markdown=markdown(facts.table), latex=latex(facts.table),
        overall=figures.utility(variants, facts.metric),
        parts_of=[_variant_part(variant, facts.metric) for variant in variants[:_MOST_VARIANTS]],
        left_out=max(0, len(variants) - _MOST_VARIANTS), attacks=figures.attacks(facts.cells),
        verdicts=_verdicts(facts), costs=_costs(facts), claims=_claims(facts), tuned_on=facts.tuned_on,
        seeds=", ".join(str(seed) for seed in sorted({run.seed for run, _ in facts.reports})), several=len(_seeds(facts)) > 1,
    ))


def _variant_part(variant: figures.Variant, metric: str) -> dict[str, Any]:
    return {
        "name": variant.name, "hospitals": figures.hospitals(variant, metric),
        "groups": figures.groups(variant, metric), "tests": _gap_tests(variant, metric), "gaps": figures.gaps(variant, metric),
    }


def _gap_tests(variant: figures.Variant, metric: str) -> list[tuple[str, str, str, str]]:
    """(budget, column, gap, p-values of the runs), in words."""
    digits = metric_words(metric).digits
    return [
        ("∞" if math.isinf(cell.epsilon) else epsilon_word(cell.epsilon), column, figure_over_patients(gap, digits),
         ", ".join(f"{p:.2g}" for p in cell.gap_p_values.get(column, ())))
        for cell in variant.cells for column, gap in cell.group_gaps.items()
    ]


def _seeds(facts: SweepFacts) -> set[int]:
    return {run.seed for run, _ in facts.reports}


def _lead(facts: SweepFacts) -> str:
    finite = sorted({cell.epsilon for cell in facts.cells if math.isfinite(cell.epsilon)})
    budgets = ", ".join(epsilon_word(epsilon) for epsilon in finite)
    report = facts.reports[0][1]
    trained = sum(site.get("role") == "train" for site in part(report, "sites").values())
    private = f"budgets ε = {budgets}" if finite else "no private budget"
    endless = " and no privacy" if any(math.isinf(cell.epsilon) for cell in facts.cells) and finite else ""
    return (
        f"{count_text(trained, 'hospital')} trained {part(report, 'model').get('name') or 'a model'} at {private}{endless}, "
        f"{count_text(len(_seeds(facts)), 'time')} each; judged by {metric_words(facts.metric).label} on test patients."
    )


def _bands(facts: SweepFacts) -> list[Band]:
    bands = []
    if facts.violations:
        bands.append(Band("danger", "An attack found more than the guarantee allows", "; ".join(facts.violations) + "."))
    if len(facts.reports) < facts.planned:
        missing = f"{facts.planned - len(facts.reports)} of {facts.planned} runs"
        bands.append(Band("warning", "Not complete", f"{missing} are not finished; this page tells of the others."))
    if any(cell.unit for cell in facts.cells):
        bands.append(Band("warning", "Simulated, and many worlds", (
            "Noise follows from each run's seed, so these runs protect nobody. Each run is a world of its own, as if the others "
            "had not been: on real patients every run of a sweep would be charged to every hospital's ledger, and their ε "
            "would add up. Sweep on public or generated images."
        )))
    return bands


def _cards(facts: SweepFacts) -> list[Card]:
    digits = metric_words(facts.metric).digits
    label = metric_words(facts.metric).label
    cards = []
    federated = [cell for cell in facts.cells if cell.arm == "federated" and cell.test]
    lowest = min((c for c in federated if c.unit), key=lambda c: c.epsilon, default=None)
    highest = max((c for c in federated if c.unit), key=lambda c: c.epsilon, default=None)
    plain = next((c for c in federated if not c.unit), None)
    for cell in dict.fromkeys(id(c) for c in (lowest, highest, plain) if c is not None):
        found = next(c for c in federated if id(c) == cell)
        assert found.test is not None
        where = f"ε = {epsilon_word(found.epsilon)}, {found.unit}" if found.unit else "without privacy"
        loss = found.gaps.get("non_private")
        note = f"{loss.mean:+.{digits}f} worse than without privacy" if loss else ""
        cards.append(Card(f"{label}, {where}", f"{found.test.mean:.{digits}f}", note.replace("+", "")))
    seconds = sum(fact.seconds for _, fact in facts.facts if fact.seconds == fact.seconds)
    cards.append(Card("Runs", str(len(facts.reports)), f"{duration_text(seconds)} of work"))
    return cards


def _costs(facts: SweepFacts) -> list[tuple[str, ...]]:
    """Per cell: ε spent at most, δ, noise multiplier, seconds (median), of which baselines, memory."""
    cells: dict[Any, list[tuple[PlannedRun, RunFacts]]] = {}
    for run, fact in facts.facts:
        cells.setdefault(run.cell, []).append((run, fact))
    rows: list[tuple[str, ...]] = []
    for (epsilon, unit, keys), found in cells.items():
        spent = [fact.epsilon_spent for _, fact in found if fact.epsilon_spent is not None]
        deltas = [fact.delta for _, fact in found if fact.delta is not None]
        noise = [fact.noise_multiplier for _, fact in found if fact.noise_multiplier is not None]
        rows.append((
            "∞" if math.isinf(epsilon) else epsilon_word(epsilon), unit or "–", ", ".join(f"{k}={v}" for k, v in keys) or "–",
            epsilon_text(max(spent)) if spent else "–", delta_text(max(deltas)) if deltas else "–",
            f"{min(low for low, _ in noise):.3g} to {max(high for _, high in noise):.3g}" if noise else "–",
            duration_text(median(fact.seconds for _, fact in found)),
            duration_text(median(fact.seconds_baselines for _, fact in found)) if any(r.baselines for r, _ in found) else "–",
            f"{max(fact.peak_memory_mb for _, fact in found):,.0f} MB",
        ))
    return rows


def _claims(facts: SweepFacts) -> list[tuple[str, str, str]]:
    """(unit in words, δ, statement) of each unit that was protected."""
    claims: dict[str, tuple[str, str, str]] = {}
    deltas = {run.name: fact.delta for run, fact in facts.facts}
    for run, report in facts.reports:
        if run.unit and run.unit not in claims:
            statement = str(part(report, "privacy").get("statement") or "")
            claims[run.unit] = (UNITS.get(run.unit, run.unit), delta_text(deltas[run.name]), statement)
    return list(claims.values())


def _verdicts(facts: SweepFacts) -> list[tuple[str, str, str, str]]:
    """(run, attack, target, verdict), in words."""
    return [
        (run.name, str(attack.get("name")), str(attack.get("target") or "–"), str(attack.get("verdict") or "not stated"))
        for run, audit in facts.audits for attack in audit.get("attacks") or ()
    ]


