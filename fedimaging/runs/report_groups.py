"""Test results by groups of patients, as the report page shows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedimaging.runs.charts import Axis, interval_row
from fedimaging.runs.report_tables import PlotRow
from fedimaging.runs.report_text import count_text, difference_text, humanise, metric_words, read_interval
from fedimaging.runs.report_view import Report, metric_axis, part, primary_metric, result_text

_TOO_FEW = "too few"


@dataclass(frozen=True)
class GroupTable:
    """One column: its groups' results, how far apart they lie, and how many patients are in groups too small to show."""

    column: str
    rows: tuple[PlotRow, ...]
    gap: str
    too_few: str


def group_tables(report: Report) -> tuple[list[GroupTable], Axis]:
    """A table for each column that the study asked for, by the primary metric, and the axis that the dots share."""
    metric, columns = primary_metric(report), part(report, "groups")
    read = {
        column: {value: read_interval(table.get(metric)) for value, table in values.items() if value != _TOO_FEW}
        for column, values in columns.items()
    }
    axis = metric_axis(metric, (one for found in read.values() for one in found.values()))
    tables = []
    for column, found in read.items():
        rows = tuple(
            PlotRow(value, interval_row([(value, one)], axis),
                    (count_text(one.n_patients if one else None), result_text(report, metric, one)))
            for value, one in found.items()
        )
        gap = part(part(report, "group_gaps"), column)
        name, few = humanise(column.replace("+", " and ")), columns[column].get(_TOO_FEW)
        tables.append(GroupTable(name, rows, _gap_words(metric, gap), _few_words(few)))
    return tables, axis


def source_words(report: Report) -> str:
    """Where the figures of groups come from."""
    how = part(report, "released").get("groups")
    return {
        None: "", "none": "",
        "scores": "This simulation knows each test patient; a real hospital sends no score and no column, only what its policy "
                  "allows of groups.",
        "noised": "Each hospital released counts of every group with noise, charged to its ledger; the intervals hold the noise.",
        "metrics": "Each hospital released exact metrics of its large enough groups, without noise: these carry no protection.",
        "policy": "They follow from what each hospital’s own policy releases of groups.",
    }[how]


def _gap_words(metric: str, gap: Mapping[str, Any]) -> str:
    found = read_interval(gap)
    if found is None:
        return "Fewer than two groups have a result, so there is no gap to tell."
    words = metric_words(metric)
    differs = (
        f"Between {gap['best']} (best) and {gap['worst']} (worst) {words.label} differs by "
        f"{difference_text(found, words.digits)}, 95 % interval"
    )
    if gap["p_value"] is None:
        return f"{differs}; no test is made without scores of single patients."
    return (
        f"{differs} over patients. Groups of these sizes dealt at random lie as far apart with probability "
        f"{gap['p_value']:.2g} (permutation test)."
    )


def _few_words(few: Mapping[str, Any] | None) -> str:
    if not few:
        return ""
    return f"{count_text(few['n_patients'], 'patient')} of {count_text(few['groups'], 'group')} too small to be shown."
