"""Whether the model's probabilities mean what they say, as the report page shows it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedimaging.results import Interval
from fedimaging.runs.charts import Axis, interval_row, interval_ruler, round_axis
from fedimaging.runs.reliability_chart import reliability_chart
from fedimaging.runs.report_curves import Figure
from fedimaging.runs.report_text import NOT_MEASURED, count_text, epsilon_text, humanise, read_interval
from fedimaging.runs.report_view import Report, part, sites_in_order

_FORECAST = {
    "binary": "the probability of {positive}", "multiclass": "the probability of the class that the model chose",
    "multilabel": "the probability of each label",
}
_LEAST_SLOPE, _MOST_SLOPE = -1.0, 4.0  # ends of the dot plot: one wild hospital does not squeeze the others
_LEVEL = 0.05
_PARTS = (("brier", "Brier score"), ("reliability", "Reliability"), ("resolution", "Resolution"), ("uncertainty", "Uncertainty"))


@dataclass(frozen=True)
class CalibrationRow:
    """One set of patients: `cells`, and `parts` of the Brier score, are (column, lines), a line before and perhaps one after
    tempering. `alarm`: the test says that the probabilities are off, before tempering."""

    name: str
    patients: str
    plot: Markup
    cells: tuple[tuple[str, tuple[str, ...]], ...]
    parts: tuple[tuple[str, tuple[str, ...]], ...]
    alarm: bool


@dataclass(frozen=True)
class CalibrationView:
    """What `report_calibration.html.j2` shows. `series`: what a mark or a line of a cell stands for."""

    words: str
    forecast: str
    series: tuple[str, ...]
    figures: tuple[Figure, ...]
    site_figures: tuple[Figure, ...]
    rows: tuple[CalibrationRow, ...]
    ruler: Markup
    temperatures: tuple[tuple[str, str, str], ...]


def calibration_view(report: Report) -> CalibrationView | None:
    """None where the run neither released scores nor fitted a temperature."""
    found = part(report, "calibration")
    tables = [(name, found[key]) for key, name in (("before", "as trained"), ("after", "tempered")) if found.get(key)]
    tempering = found.get("tempering") or {}
    if not tables and not tempering:
        return None
    scopes = list(_scopes(report, tables))
    slopes = [read_interval(table["slope"]) for _, _, parts in scopes for table in parts if table]
    axis = _slope_axis(slopes)
    rows = tuple(_row(name, parts, axis) for _, name, parts in scopes if parts[0])
    names = tuple(name for name, _ in tables)
    figures = [(scope, _figure(name, names, parts)) for scope, name, parts in scopes if parts[0] and scope != "group"]
    return CalibrationView(
        words=tempering.get("words", ""), forecast=_forecast_words(report), series=names,
        figures=tuple(figure for scope, figure in figures if scope == "all"),
        site_figures=tuple(figure for scope, figure in figures if scope == "site"),
        rows=rows, ruler=interval_ruler(axis), temperatures=_temperatures(tempering),
    )


def _scopes(
    report: Report, tables: Sequence[tuple[str, Mapping[str, Any]]]
) -> Iterator[tuple[str, str, list[Mapping[str, Any] | None]]]:
    """(kind, name, its table in each series), everybody first."""
    if not tables:
        return
    each = [table for _, table in tables]
    yield "all", "All test patients", [table["test"] for table in each]
    if each[0].get("held_out"):
        yield "all", "Held-out hospitals", [table["held_out"] for table in each]
    for name in sites_in_order(report):
        if name in each[0]["sites"]:
            yield "site", name, [table["sites"].get(name) for table in each]
    for column, values in each[0]["groups"].items():
        for value in values:
            yield "group", f"{humanise(column)}: {value}", [table["groups"][column].get(value) for table in each]


def _slope_axis(slopes: Sequence[Interval | None]) -> Axis:
    ends = [end for one in slopes if one is not None for end in (one.value, one.low, one.high) if math.isfinite(end)]
    return round_axis([1.0, *(min(_MOST_SLOPE, max(_LEAST_SLOPE, end)) for end in ends)], most_ticks=4)


def _row(name: str, parts: Sequence[Mapping[str, Any] | None], axis: Axis) -> CalibrationRow:
    tables = [table for table in parts if table]
    slopes = [("before" if k == 0 else "after", read_interval(table["slope"])) for k, table in enumerate(tables)]
    p_values = [table.get("p_adjusted", table["p_value"]) for table in tables]
    return CalibrationRow(
        name, count_text(tables[0]["n_patients"]), interval_row(slopes, axis),
        (
            ("Slope", tuple(_text(table["slope"], 2) for table in tables)),
            ("Intercept", tuple(_text(table["intercept"], 2) for table in tables)),
            ("Calibration error", tuple(_text(table["ece"], 3) for table in tables)),
            ("By chance", tuple(f"{table['ece_by_chance']:.3f}" for table in tables)),
            ("Test", tuple(NOT_MEASURED if p is None else f"p = {p:.2g}" for p in p_values)),
        ),
        tuple((label, tuple(_text(table[key], 3) for table in tables)) for key, label in _PARTS),
        p_values[0] is not None and p_values[0] < _LEVEL,
    )


def _text(raw: object, digits: int) -> str:
    """`−3.70 (−4.22 to −3.18)`: a dash between limits would read as a sign."""
    found = read_interval(raw)
    if found is None or math.isnan(found.value):
        return "not defined"
    ends = "no interval" if math.isnan(found.low) else f"{found.low:.{digits}f} to {found.high:.{digits}f}"
    return f"{found.value:.{digits}f} ({ends})".replace("-", "−")


def _figure(title: str, series: Sequence[str], parts: Sequence[Mapping[str, Any] | None]) -> Figure:
    drawn = [(name, table["bins"]) for name, table in zip(series, parts, strict=True) if table]
    first = parts[0] or {}
    note = (
        f"{count_text(first['n_patients'], 'patient')}, {count_text(first['forecasts'], 'forecast')} in "
        f"{count_text(len(first['bins']), 'bin')} of equal number."
    )
    return Figure(title, reliability_chart(f"Reliability, {title}", drawn), (), note)


def _forecast_words(report: Report) -> str:
    names = part(report, "task").get("class_names") or ["", "class 1"]
    kind = str(part(report, "calibration").get("kind"))
    return _FORECAST.get(kind, "the probability").format(positive=names[1] if len(names) > 1 else "class 1")


def _temperatures(tempering: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """(hospital, temperature of its own sums, what releasing them cost), and those that released nothing."""
    charged = (tempering.get("charge") or {}).get("sites", {})
    rows = [
        (site, _text({**found, "n_patients": 0}, 2).replace("not defined", "not told apart from noise and chance"),
         f"ε = {epsilon_text(charged[site]['epsilon'])}, noise multiplier {charged[site]['noise_multiplier']:.4g}"
         if site in charged else "nothing: exact sums, without noise")
        for site, found in sorted((tempering.get("sites") or {}).items())
    ]
    refused = [(site, f"released nothing ({humanise(code).lower()})", "nothing") for site, code in sorted(
        (tempering.get("refused") or {}).items())]
    return (*rows, *refused)
