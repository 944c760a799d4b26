"""The operating point and the decision curve as the report page shows them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedimaging.results import Interval
from fedimaging.runs.charts import Axis, Line, line_chart
from fedimaging.runs.report_curves import Figure
from fedimaging.runs.report_text import count_text, read_interval, spread_text
from fedimaging.runs.report_view import Report, is_held_out, part, sites_in_order

_RATES = ("sensitivity", "specificity", "ppv", "npv")
RATE_WORDS = {
    "sensitivity": "Sensitivity", "specificity": "Specificity",
    "ppv": "Positive predictive value", "npv": "Negative predictive value",
}
_LEAST_BENEFIT = -0.05  # what is worse than acting on nobody goes far below: the chart ends here


@dataclass(frozen=True)
class RateRow:
    """Who, whether held out, and the four rates as (value, spread and number of patients)."""

    name: str
    held_out: bool
    rates: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class OperatingPoint:
    """`choice`: how the threshold was chosen, or why there is none."""

    choice: str
    rows: tuple[RateRow, ...]


def operating_view(report: Report) -> OperatingPoint | None:
    """None where the study asks for no operating point."""
    point = part(report, "operating_point")
    if not point:
        return None
    aim = f"{RATE_WORDS[point['aim']].lower()} of at least {100 * point['target']:g} %"
    if point["threshold"] is None:
        return OperatingPoint(f"The study asks for a threshold with a {aim}. None was chosen: {point['why']}.", ())
    sites = sites_in_order(report)
    rows = [_row("Validation patients", False, point["validation"]), _row("All test patients", False, point["test"])]
    if point["held_out"]:
        rows.append(_row("All held-out patients", True, point["held_out"]))
    rows += [_row(name, is_held_out(sites[name]), point["hospitals"][name]) for name in sites if name in point["hospitals"]]
    where = f"on {count_text(point['validation']['n_patients'], 'validation patient')} of the training hospitals"
    what = "at or above" if point["from"] == "scores" else "above"
    how = "" if point["from"] == "scores" else " From totals with noise; the threshold is one of their public borders."
    return OperatingPoint(
        f"A score {what} {point['threshold']:.6g} is called positive. The threshold was chosen {where}, for a {aim} there, and "
        f"then left alone: no test patient had a part in it.{how}", tuple(rows),
    )


def _row(name: str, held_out: bool, rates: Mapping[str, Any]) -> RateRow:
    return RateRow(name, held_out, tuple(_rate(read_interval(rates[rate])) for rate in _RATES))


def _rate(found: Interval | None) -> tuple[str, str]:
    if found is None or math.isnan(found.value):
        return "–", "nobody to count"
    return f"{100 * found.value:.0f} %", f"{_percents(found)}, {count_text(found.n_patients, 'patient')}"


def _percents(found: Interval) -> str:
    return spread_text(Interval(100 * found.value, 100 * found.low, 100 * found.high, found.n_patients), 0)


def decision_figure(report: Report) -> Figure | None:
    """Net benefit of the model beside acting on everybody and on nobody; None where there is no curve."""
    curve = part(report, "decision_curve")
    if not curve:
        return None
    at = curve["thresholds"]
    ends = {key: _shown([(x, one[key]) for x, one in zip(at, curve["model"], strict=True)]) for key in ("value", "low", "high")}
    chart = line_chart(
        "Net benefit",
        [
            Line("acting on the model", ends["value"], "main"), Line("95 % interval, low", ends["low"], "site"),
            Line("95 % interval, high", ends["high"], "site"),
            Line("acting on everybody", _shown(list(zip(at, curve["treat_all"], strict=True))), "s1"),
            Line("acting on nobody", [(x, 0.0) for x in at], "s2"),
        ],
        across=Axis(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)), across_name="threshold probability",
    )  # fmt: skip
    legend = (("main", "acting on the model"), ("site", "its 95 % interval over patients"), ("s1", "acting on everybody"),
              ("s2", "acting on nobody"))  # fmt: skip
    return Figure("Net benefit, test patients", chart, legend)


def _shown(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    return [(x, y if y is not None and y >= _LEAST_BENEFIT else None) for x, y in points]
