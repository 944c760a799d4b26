"""The hospital × hospital matrix as the report page shows it: a heat table whose numbers can be read without colour."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedimaging.runs.report_text import count_text, metric_words, read_interval, spread_text
from fedimaging.runs.report_view import Report, is_held_out, part

_STEPS = 5  # shades of the heat table, from 0 for the worst value to this for the best
_OF = {"local_only": "trained alone", "pooled": "all data in one place", "federated": "this run"}


@dataclass(frozen=True)
class Cell:
    """`value` as printed with its `spread`, or why there is none; `shade` 0..5, None without a value; `own`: the model's own
    hospital."""

    value: str
    spread: str
    shade: int | None
    own: bool


@dataclass(frozen=True)
class Matrix:
    """`columns`: (hospital, test patients, held out). `rows`: (model, what it is, cells). `ends`: least and greatest value."""

    columns: tuple[tuple[str, str, bool], ...]
    rows: tuple[tuple[str, str, tuple[Cell, ...]], ...]
    ends: tuple[str, str]


def matrix_view(report: Report) -> Matrix | None:
    """The table, or None for a run without one."""
    table = part(report, "matrix")
    if not table:
        return None
    metric, sites = table["metric"], part(report, "sites")
    words = metric_words(metric)
    values = [c["value"] for row in table["rows"] for c in row["cells"].values() if c["value"] is not None] or [math.nan]
    ends = (min(values), max(values))
    columns = tuple(
        (name, count_text((sites.get(name) or {}).get("test_patients"), "patient"), is_held_out(sites.get(name) or {}))
        for name in table["hospitals"]
    )
    rows = tuple(
        (row["model"], _OF[row["of"]], tuple(
            _cell(cell, words.digits, ends, lower=words.lower_is_better, own=row["of"] == "local_only" and row["model"] == name)
            for name, cell in row["cells"].items()
        ))
        for row in table["rows"]
    )
    return Matrix(columns, rows, (f"{ends[0]:.{words.digits}f}", f"{ends[1]:.{words.digits}f}"))


def _cell(cell: Mapping[str, Any], digits: int, ends: tuple[float, float], *, lower: bool, own: bool) -> Cell:
    found = read_interval(cell)
    if found is None or math.isnan(found.value):
        return Cell("–", str(cell["why"]), None, own)
    share = (found.value - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 1.0
    return Cell(f"{found.value:.{digits}f}", spread_text(found, digits), round(_STEPS * (1 - share if lower else share)), own)
