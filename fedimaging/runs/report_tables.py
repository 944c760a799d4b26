"""Results beside each other: baselines, held-out hospitals, every metric, every hospital."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedimaging.runs.charts import Axis, interval_row
from fedimaging.runs.report_text import humanise, metric_words, read_interval
from fedimaging.runs.report_view import (
    Report,
    is_held_out,
    metric_axis,
    part,
    primary_metric,
    result_text,
    sites_in_order,
)


@dataclass(frozen=True)
class PlotRow:
    """A named row of a dot plot with its figures in words."""

    name: str
    plot: Markup
    results: tuple[str, ...]


def baseline_series(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, block) of this run and of each baseline; every block has `test`, `held_out`, `sites`."""
    own = {
        "test": part(report, "test"), "held_out": part(report, "held_out"),
        "sites": {name: site.get("test") or {} for name, site in sites_in_order(report).items()},
    }
    titles = {"pooled": "Pooled", "local_only": "Local only"}
    given = part(report, "baselines")
    return [("Federated", own), *((titles.get(key, humanise(key)), block) for key, block in given.items() if block)]


def baseline_rows(report: Report) -> tuple[list[PlotRow], Axis]:
    """The primary metric of federated and baselines side by side: all, held out, and each hospital."""
    metric, series = primary_metric(report), baseline_series(report)
    groups = {
        "All test patients": [(name, part(block, "test").get(metric)) for name, block in series],
        "Held-out hospitals": [(name, part(block, "held_out").get(metric)) for name, block in series],
    } | {
        site: [(name, (part(block, "sites").get(site) or {}).get(metric)) for name, block in series]
        for site in sites_in_order(report)
    }
    read = {title: [(name, read_interval(raw)) for name, raw in group] for title, group in groups.items()}
    kept = {title: group for title, group in read.items() if any(one is not None for _, one in group)}
    axis = metric_axis(metric, (one for group in kept.values() for _, one in group))
    return [
        PlotRow(title, interval_row(group, axis), tuple(result_text(report, metric, one) for _, one in group))
        for title, group in kept.items()
    ], axis


def held_out_rows(report: Report) -> tuple[list[PlotRow], Axis]:
    """The training hospitals' patients above each held-out hospital's; no rows when none was held out."""
    metric, sites = primary_metric(report), sites_in_order(report)
    held = {n: read_interval(part(site, "test").get(metric)) for n, site in sites.items() if is_held_out(site)}
    if not held and not part(report, "held_out"):
        return [], metric_axis(metric, ())
    results = {"Patients of the hospitals that trained": read_interval(part(report, "test").get(metric))}
    if len(held) != 1:
        results["All held-out patients"] = read_interval(part(report, "held_out").get(metric))
    results |= held
    axis = metric_axis(metric, results.values())
    return [
        PlotRow(name, interval_row([(name, one)], axis), (result_text(report, metric, one),))
        for name, one in results.items()
    ], axis


def metric_table(report: Report) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """(columns, rows): a row is metric, meaning, and its interval in each column."""
    columns = [(f"{name}, {words}", part(block, key)) for name, block in baseline_series(report)
               for key, words in (("test", "test patients"), ("held_out", "held-out hospitals")) if part(block, key)]
    metrics = list(dict.fromkeys(metric for _, block in columns for metric in block))
    rows = []
    for metric in metrics:
        words = metric_words(metric)
        meaning = f"{words.meaning}{'; lower is better' if words.lower_is_better else ''}".removeprefix("; ")
        cells = [result_text(report, metric, read_interval(block.get(metric))) for _, block in columns]
        rows.append((words.label, meaning, cells))
    return [title for title, _ in columns], rows


def site_metric_table(report: Report) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(metric labels, rows): every metric at every hospital."""
    sites = sites_in_order(report)
    metrics = list(dict.fromkeys(metric for site in sites.values() for metric in site.get("test") or {}))
    return [metric_words(m).label for m in metrics], [
        (name, [result_text(report, m, read_interval((site.get("test") or {}).get(m))) for m in metrics])
        for name, site in sites.items()
    ]
