"""Evaluation beyond one figure over everybody, as the report page shows it: cards and leave-one-hospital-out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedimaging.results import Interval
from fedimaging.runs.charts import interval_row, interval_ruler
from fedimaging.runs.report_decisions import RATE_WORDS, decision_figure, operating_view
from fedimaging.runs.report_lesions import lesions_view
from fedimaging.runs.report_matrix import matrix_view
from fedimaging.runs.report_tables import PlotRow
from fedimaging.runs.report_text import (
    count_text,
    difference_text,
    duration_text,
    metric_words,
    read_interval,
    spread_text,
)
from fedimaging.runs.report_view import Card, Report, metric_axis, part, primary_metric, result_text


@dataclass(frozen=True)
class LeaveOneOut:
    """`rows`: hospital, external, internal and their difference. `mean` in words, '' where there is none. `cost`: (hospital,
    duration)."""

    rows: tuple[PlotRow, ...]
    ruler: Markup
    mean: str
    cost: tuple[tuple[str, str], ...]


def evaluation_view(report: Report) -> dict[str, Any]:
    """What `report_evaluation.html.j2` shows; `nav`: (id, words) of the sections that are there."""
    view: dict[str, Any] = {
        "matrix": matrix_view(report), "left_out": _left_out(report), "held_out_gap": _held_out_gap(report),
        "point": operating_view(report), "decision": decision_figure(report), "lesions": lesions_view(report),
        "rates": list(RATE_WORDS.values()),
    }
    sections = (
        ("matrix", "matrix", "Hospital × hospital"), ("left_out", "leave-one-out", "Leave one out"),
        ("point", "operating-point", "Operating point"), ("decision", "decision-curve", "Net benefit"),
        ("lesions", "lesions", "Lesions"),
    )
    return view | {"nav": [(place, words) for name, place, words in sections if view[name]]}


def worst_cards(report: Report) -> list[Card]:
    """The worst hospital and the worst group as key figures; none where a run could not compare."""
    hospital, group = part(report, "worst_hospital"), part(report, "worst_group")
    cards = []
    if hospital:
        cards.append(_worst_card(f"Worst hospital: {hospital['hospital']}", hospital, "hospital"))
    if group:
        name = f"{group['column'].replace('_', ' ').replace('+', ' and ')} {group['group']}"
        cards.append(_worst_card(f"Worst group: {name}", group, "group"))
    return cards


def _worst_card(label: str, worst: Mapping[str, Any], noun: str) -> Card:
    found, digits = read_interval(worst), min(2, metric_words(worst["metric"]).digits)
    assert found is not None  # a worst one has a value
    note = f"{spread_text(found, digits)}, {count_text(found.n_patients, 'patient')}; of {count_text(worst['compared'], noun)}"
    return Card(label, f"{found.value:.{digits}f}", note)


def _left_out(report: Report) -> LeaveOneOut | None:
    table = part(report, "leave_one_out")
    if not table:
        return None
    metric = table["metric"]
    read = {
        name: [read_interval(row[key]) for key in ("external", "internal", "difference")]
        for name, row in table["hospitals"].items()
    }
    axis = metric_axis(metric, (one for row in read.values() for one in row[:2]))
    rows = tuple(
        PlotRow(name, interval_row([("never saw this hospital", outside), ("trained with it", inside)], axis), (
            _external_text(report, metric, outside, table["hospitals"][name]["why"]), result_text(report, metric, inside),
            difference_text(gap, metric_words(metric).digits),
        ))
        for name, (outside, inside, gap) in read.items()
    )
    return LeaveOneOut(rows, interval_ruler(axis), _mean_words(table, metric), _cost(table["cost"]))


def _external_text(report: Report, metric: str, interval: Interval | None, why: str | None) -> str:
    if why:
        return f"not defined ({why})"
    patients = f", {count_text(interval.n_patients, 'patient')}" if interval else ""
    return f"{result_text(report, metric, interval)}{patients}"


def _mean_words(table: Mapping[str, Any], metric: str) -> str:
    mean, words = table["mean"], metric_words(metric)
    if not mean:
        return ""
    external, internal, gap = (read_interval(mean[key]) for key in ("external", "internal", "difference"))
    assert external is not None  # a mean has all three
    assert internal is not None
    return (
        f"Over {count_text(mean['hospitals'], 'hospital')}, each counting alike and on the same test patients: {words.label} "
        f"{internal.value:.{words.digits}f} ({spread_text(internal, words.digits)}) trained with the hospital, "
        f"{external.value:.{words.digits}f} ({spread_text(external, words.digits)}) without it; difference "
        f"{difference_text(gap, words.digits)}, paired by patient."
    )


def _cost(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((row["hospital"], duration_text(row["training"] + row["evaluation"])) for row in rows)


def _held_out_gap(report: Report) -> str:
    gap, metric = read_interval(report.get("held_out_gap")), primary_metric(report)
    if gap is None or math.isnan(gap.value):
        return ""
    words = metric_words(metric)
    return (
        f"Patients of the hospitals that trained, minus held-out patients: {words.label} "
        f"{difference_text(gap, words.digits)}, 95 % interval over patients."
    )
