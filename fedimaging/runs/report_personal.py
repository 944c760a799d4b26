"""Models of the hospitals' own, and weights that follow need, as the report page shows them."""

from typing import Any

from fedimaging.results import Interval
from fedimaging.runs.charts import interval_row, interval_ruler, round_axis
from fedimaging.runs.report_tables import PlotRow
from fedimaging.runs.report_text import NOT_MEASURED, interval_text, metric_words, read_interval
from fedimaging.runs.report_view import Report, part, result_text

_COLUMNS = {"over_shared": "Gain over the shared model", "over_alone": "Gain over training alone"}


def personal_section(report: Report) -> dict[str, Any] | None:
    """Words, rows (hospital; own model; gains) and the ruler that the gains share; None where nothing is personal."""
    found = part(report, "personalised")
    if not found:
        return None
    metric = str(found["metric"])
    shown = [name for name in _COLUMNS if any(site.get(name) for site in found["sites"].values())]
    gains = {site: [read_interval(facts.get(name)) for name in shown] for site, facts in found["sites"].items()}
    mean = [read_interval(part(found, "mean").get(name)) for name in shown]
    known = [one for row in [*gains.values(), mean] for one in row if one is not None]
    axis = round_axis([0.0, *(end for one in known for end in (one.low, one.high, one.value))], most_ticks=4)
    names = [_COLUMNS[name] for name in shown]

    def row(title: str, result: str, found: list[Interval | None]) -> PlotRow:
        plot = interval_row(list(zip(names, found, strict=True)), axis)
        return PlotRow(title, plot, (result, *(_gain(metric, gain) for gain in found)))

    rows = [
        row(site, result_text(report, metric, read_interval(part(facts, "test").get(metric))), gains[site])
        for site, facts in found["sites"].items()
    ]
    return {
        "words": found["words"], "columns": names, "ruler": interval_ruler(axis), "missing": ", ".join(found["missing"]),
        "rows": [*rows, row("Mean over hospitals", "", mean)],
    }


def fairness_section(report: Report) -> dict[str, Any] | None:
    """Words, and for each hospital its share of the whole weight, public and in the last round."""
    found = part(report, "fairness")
    if not found:
        return None
    rows = [(name, _percent(shares["public"]), _percent(shares["last"])) for name, shares in found["shares"].items()]
    return {"words": found["words"], "rows": rows}


def _gain(metric: str, gain: Interval | None) -> str:
    if gain is None:
        return NOT_MEASURED
    text = interval_text(gain, metric_words(metric).digits)
    return f"+{text}" if gain.value > 0 else text


def _percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{100 * share:.1f}\u00a0%"
