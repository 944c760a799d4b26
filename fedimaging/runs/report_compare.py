"""Several runs side by side: their results on one axis, their curves together, and what their studies differ in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedimaging.runs.charts import Axis, Line, interval_row, line_chart
from fedimaging.runs.report_curves import Figure
from fedimaging.runs.report_privacy import Band
from fedimaging.runs.report_text import bytes_text, duration_text, epsilon_text, metric_words, read_interval
from fedimaging.runs.report_view import Report, facts_of, metric_axis, part, primary_metric, result_text

MOST_COLOURS = 7  # lines in looks `s0`..`s6`; further runs are thin and grey


@dataclass(frozen=True)
class RunRow:
    """One run of the comparison table."""

    name: str
    plot: Markup
    result: str
    held_out: str
    privacy: str
    rounds: int
    sent: str
    time: str


def run_rows(reports: Mapping[str, Report]) -> tuple[list[RunRow], Axis]:
    """A row for each run, judged by the first run's primary metric, and the axis that the dots share."""
    metric = primary_metric(next(iter(reports.values())))
    results = {name: read_interval(part(report, "test").get(metric)) for name, report in reports.items()}
    axis = metric_axis(metric, results.values())
    return [
        RunRow(
            name=name,
            plot=interval_row([(name, results[name])], axis),
            result=result_text(report, metric, results[name]),
            held_out=result_text(report, metric, read_interval(part(report, "held_out").get(metric))),
            privacy=_privacy_words(report),
            rounds=len(report.get("rounds") or ()),
            sent=bytes_text(report.get("bytes_per_round_per_site")),
            time=duration_text(part(report, "seconds").get("total")),
        )
        for name, report in reports.items()
    ], axis


def _privacy_words(report: Report) -> str:
    facts = facts_of(report)
    if facts.kept_by_hospitals:
        return "own ledgers"
    if not facts.accounted:
        return "none"
    if not facts.claims:
        return "incomplete"
    return f"ε = {epsilon_text(facts.epsilon)}" + (" (simulated noise)" if facts.simulated else "")


def run_curves(reports: Mapping[str, Report]) -> list[Figure]:
    """The primary metric and the loss of every run over its rounds."""
    metric = primary_metric(next(iter(reports.values())))
    looks = {name: f"main s{k}" if k < MOST_COLOURS else "site" for k, name in enumerate(reports)}
    figures = []
    for wanted in dict.fromkeys((metric, "loss")):
        words = metric_words(wanted)
        lines = [
            Line(name, [(r["round"], part(r, "metrics").get(wanted)) for r in report.get("rounds") or ()], looks[name])
            for name, report in reports.items()
        ]
        legend = tuple((line.look, line.name) for line in lines if line.measured())
        figures.append(Figure(f"{words.label} after each evaluated round",
                              line_chart(words.label, lines, bounded=words.bounded), legend))
    return [figure for figure in figures if figure.chart]


def comparison_bands(reports: Mapping[str, Report]) -> list[Band]:
    """Reasons why the runs may not be comparable."""
    bands = []
    metrics = {primary_metric(report) for report in reports.values()}
    if len(metrics) > 1:
        text = f"{', '.join(sorted(metrics))}; the first run’s is shown."
        bands.append(Band("warning", "Different metrics of record", text))
    patients = {_test_patients(report) for report in reports.values()}
    if len(patients) > 1:
        bands.append(Band("warning", "Different test patients", (
            "The runs were tested on different numbers of patients, so part of a difference may come from the patients."
        )))
    return bands


def _test_patients(report: Report) -> int:
    result = read_interval(part(report, "test").get(primary_metric(report)))
    return result.n_patients if result else 0


def metric_columns(reports: Mapping[str, Report]) -> list[tuple[str, list[str]]]:
    """Every test metric: (label, its interval in each run)."""
    metrics = list(dict.fromkeys(m for report in reports.values() for m in part(report, "test")))
    return [
        (metric_words(metric).label, [
            result_text(report, metric, read_interval(part(report, "test").get(metric)))
            for report in reports.values()
        ])
        for metric in metrics
    ]


def study_differences(reports: Mapping[str, Report]) -> list[tuple[str, list[str]]]:
    """(dotted key of the study, its value in each run), only keys that are not the same in all runs."""
    flat = [_flatten(part(report, "study")) for report in reports.values()]
    keys = sorted(set().union(*flat))
    rows = [(key, [_value_words(study, key) for study in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(study: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in study.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _value_words(study: Mapping[str, Any], key: str) -> str:
    value = study.get(key)
    return "–" if value is None else str(value)


def unique_names(named: Sequence[tuple[str, Report]]) -> dict[str, Report]:
    """(folder, report) pairs by the run's name, with the folder added where two runs share it."""
    names = [str(report.get("name") or folder) for folder, report in named]
    unique: dict[str, Report] = {}
    for (folder, report), name in zip(named, names, strict=True):
        title = name if names.count(name) == 1 else f"{name} ({folder})"
        copy = title
        while copy in unique:
            copy += " again"
        unique[copy] = report
    return unique
