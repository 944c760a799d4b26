"""The course of a training over its rounds, as figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedimaging.runs.charts import Line, line_chart
from fedimaging.runs.report_text import metric_words
from fedimaging.runs.report_view import Report, is_held_out, part, primary_metric, sites_in_order


@dataclass(frozen=True)
class Figure:
    """A chart with a title, its legend as (CSS look, words), and a line of explanation."""

    title: str
    chart: Markup
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""


def curves(report: Report) -> list[Figure]:
    """The course of the training; a chart without a single point is left out."""
    metric = primary_metric(report)
    wanted = [metric] if metric == "loss" else [metric, "loss"]
    figures = [*(_metric_figure(report, name) for name in wanted), _norm_figure(report), _epsilon_figure(report)]
    return [figure for figure in figures if figure.chart]


def _rounds(report: Report) -> list[Mapping[str, Any]]:
    return list(report.get("rounds") or ())


def _metric_figure(report: Report, metric: str) -> Figure:
    sites, rounds = sites_in_order(report), _rounds(report)
    lines = [Line("Overall", [(r["round"], part(r, "metrics").get(metric)) for r in rounds])]
    for name, site in sites.items():
        points = [(r["round"], (part(r, "site_metrics").get(name) or {}).get(metric)) for r in rounds]
        lines.append(Line(name, points, "site held" if is_held_out(site) else "site"))
    seen = {line.look for line in lines if line.measured()}
    words = {"main": "overall", "site": "each training hospital", "site held": "held-out hospital"}
    label, bounded = metric_words(metric).label, metric_words(metric).bounded
    return Figure(
        f"{label} after each evaluated round", line_chart(label, lines, bounded=bounded),
        tuple((look, text) for look, text in words.items() if look in seen),
        "Lower is better." if metric_words(metric).lower_is_better else "",
    )


def _norm_figure(report: Report) -> Figure:
    points = [(r["round"], r.get("update_norm")) for r in _rounds(report)]
    chart = line_chart("Update norm", [Line("Update norm", points)], from_zero=True)
    return Figure("Size of the model’s step", chart, note="Norm of the averaged update in each round.")


def _epsilon_figure(report: Report) -> Figure:
    """Epsilon against one common budget; with different budgets, the share of each hospital's own."""
    rounds, sites = _rounds(report), sites_in_order(report)
    budgets = {name: (site.get("privacy") or {}).get("budget_epsilon") for name, site in sites.items()}
    known = {b for name, b in budgets.items() if b}
    common = len(known) < 2
    lines = []
    for name in sites:
        budget = budgets[name]
        scale = 1.0 if common else 100 / budget if budget else None
        spent = [(r["round"], part(r, "epsilon").get(name)) for r in rounds]
        points = [(at, None if eps is None or scale is None else eps * scale) for at, eps in spent]
        lines.append(Line(name, points, "site"))
    most = max((line for line in lines if line.measured()), key=lambda line: line.measured()[-1][1], default=None)
    others = any(line.measured() for line in lines if line is not most)
    lines = [Line(line.name, line.points, "main") if line is most else line for line in lines]
    limit = ("budget", known.pop() if common else 100.0) if known else None
    return Figure(
        "Privacy spent (ε)" if common else "Privacy spent, % of each hospital’s budget",
        line_chart("Privacy spent", lines, limit=limit, from_zero=True),
        (("main", f"most spent: {most.name}"), ("site", "other hospitals")) if most and others else (),
        "Added up over all rounds; it never falls.",
    )
