"""The page of a look at a released model: one self-contained HTML file, made from monitoring.json and the log alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedimaging.files import write_text
from fedimaging.runs.report import render
from fedimaging.runs.report_privacy import Band
from fedimaging.runs.report_text import count_text, metric_words
from fedimaging.site.record import day_and_time

WORDS = {
    "mean": "mean brightness", "deviation": "contrast (deviation)", "p01": "dark end (1st percentile)",
    "p50": "median brightness",
    "p99": "bright end (99th percentile)", "sharpness": "sharpness (mean gradient)",
    "entropy": "entropy of brightness",
}
LEVEL_WORDS = {"none": "no drift found", "watch": "watch", "act": "act"}
_WIDTH, _HEIGHT = 220, 44
_MATTERS = 0.1  # a loss in a metric that nobody would call small


@dataclass(frozen=True)
class Row:
    """One comparison, in words. `picture`: both histograms, or nothing."""

    group: str
    of_group: bool
    what: str
    before: str
    after: str
    index: str
    chance: str
    level: str
    picture: Markup


def write_monitor_page(path: Path, tree: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> None:
    """Write the page. `tree`: monitoring.json; `events`: the log, the oldest first. Error: RunError."""
    drift = sorted(tree["drift"], key=lambda one: one["group"] is not None)
    rows = [(one, _row(one)) for one in drift]

    def overall(what: str) -> list[Row]:
        return [row for one, row in rows if one["what"] == what and one["group"] is None]

    write_text(path, render(
        "monitor.html.j2", title=f"Monitoring of {tree['name']}", tree=tree, lead=_lead(tree), bands=list(_bands(tree, events)),
        sections=[("input", "What the model sees", overall("input")), ("scores", "What the model says", overall("scores")),
                  ("performance", "What the model achieves", overall("performance"))],
        found=[row for one, row in rows if one["level"] != "none"], groups=[row for _, row in rows if row.of_group],
        cards=list(_cards(tree)), events=[_event(event) for event in reversed(events)],
    ))


def _lead(tree: Mapping[str, Any]) -> str:
    if not tree["drift"]:
        return (
            "Nothing could be compared: the release or the new scans have fewer patients than the minimum of "
            f"{tree['minimum_count']}. That no drift was found means nothing."
        )
    found = [one for one in tree["drift"] if one["level"] != "none"]
    scans = f"{count_text(tree['n_scans'], 'scan')} of {count_text(tree['n_patients'], 'patient')}"
    verb = "differs" if len(found) == 1 else "differ"
    what = f"{len(found) or 'none'} of them {verb if found else 'differs'} by more than chance"
    return f"{scans} were compared with the test patients of the release in {len(tree['drift'])} ways; {what}."


def _bands(tree: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Iterator[Band]:
    seen = [event for event in events if event["event"] == "acknowledged" and event["look"] == _newest(events)]
    if tree["level"] != "none":
        tone = "danger" if tree["level"] == "act" else "warning"
        yield Band(tone, f"Level: {tree['level']}", (
            "Scans or results differ so much that the model’s figures may not hold here. A named person decides what follows."
            if tree["level"] == "act" else "Something moved, by more than chance. Look again with more patients."
        ))
        if seen:
            yield Band("calm", f"Acknowledged by {seen[-1]['who']}", f"{day_and_time(seen[-1]['time'])}: {seen[-1]['why']}")
        else:
            remedy = "Run the same command with --acknowledge NAME --reason TEXT."
            yield Band("warning", "Nobody has acknowledged this look", remedy)
    for one in tree["drift"]:
        if one["what"] == "performance" and one["group"] is None and one["level"] == "none" and one["least"] > _MATTERS:
            name = metric_words(one["name"]).label
            yield Band("warning", f"Too few patients to tell whether {name} got worse", (
                f"It was {one['before']:.3f} at release and is {one['after']:.3f} now (95 % interval {one['interval'][0]:.3f} "
                f"to {one['interval'][1]:.3f}). Only a change for the worse of more than {one['least']:.2f} could be told "
                "from chance."
            ))
    if not tree["labelled"]:
        yield Band("calm", "Performance was not measured", (
            "The new manifest has no labels. That inputs and scores look alike does not show that the answers are still right."
        ))


def _newest(events: Sequence[Mapping[str, Any]]) -> int:
    return max((int(event["sequence"]) for event in events if event["event"] == "look"), default=-1)


def _cards(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    tone = {"none": "", "watch": "warning", "act": "danger"}[tree["level"]]
    yield "Level", LEVEL_WORDS[tree["level"]], "", tone
    yield "New patients", count_text(tree["n_patients"]), count_text(tree["n_scans"], "scan"), ""
    kept = "too few" if tree["n_reference"] is None else count_text(tree["n_reference"])
    yield "Patients of the reference", kept, "test patients at release", ""
    if tree["flagged"] is not None:
        usual = f"of new scans; {100 * (1 - tree['flag_above']):.2g} % of the reference"
        yield "Flagged as unlike", f"{100 * tree['flagged']:.0f} %", usual, ""


def _row(one: Mapping[str, Any]) -> Row:
    performance = one["what"] == "performance"
    if one["what"] == "scores":
        name = f"probability of {one['name']}"
    else:
        name = metric_words(one["name"]).label if performance else WORDS.get(one["name"], one["name"])
    chance, group = one["adjusted"], "everybody" if one["group"] is None else f"{one['group'][0]}: {one['group'][1]}"
    now = f"{one['after']:.3f}" + ("" if one["interval"] is None else " ({:.3f} to {:.3f})".format(*one["interval"]))
    index = "" if one["psi"] is None else f"{one['psi']:.2f}"
    return Row(
        group, one["group"] is not None, name, f"{one['before']:.3f}", now, index,
        "< 0.001" if chance < 0.001 else f"{chance:.3f}", one["level"], _histograms(one),
    )


def _histograms(one: Mapping[str, Any]) -> Markup:
    """The reference as a filled shape, the new scans as a line; widths to scale, areas the shares."""
    if not one["edges"]:
        return Markup("")
    edges, (before, after) = one["edges"], one["shares"]
    span = edges[-1] - edges[0]
    heights = [[share / (b - a) for share, (a, b) in zip(shares, pairwise(edges), strict=True)] for shares in (before, after)]
    top = max(max(each) for each in heights) or 1.0
    xs = [round((edge - edges[0]) / span * _WIDTH, 1) for edge in edges]

    def path(densities: Sequence[float]) -> str:
        points = [f"M{xs[0]},{_HEIGHT}"]
        for density, (left, right) in zip(densities, pairwise(xs), strict=True):
            y = round((1 - density / top) * (_HEIGHT - 2) + 1, 1)
            points.append(f"L{left},{y} L{right},{y}")
        return " ".join([*points, f"L{xs[-1]},{_HEIGHT}"])

    label = f"Shares from {edges[0]:g} to {edges[-1]:g}: filled at release, line now"
    return Markup(
        '<svg class="cells" role="img" aria-label="{}" width="{}" height="{}" viewBox="0 0 {} {}"><path class="then" d="{} Z"/>'
        '<path class="now" d="{}"/></svg>'
    ).format(label, _WIDTH, _HEIGHT, _WIDTH, _HEIGHT, path(heights[0]), path(heights[1]))


def _event(event: Mapping[str, Any]) -> tuple[str, str, str]:
    when = day_and_time(event["time"])
    if event["event"] == "acknowledged":
        return when, f"acknowledged ({event['level']})", f"{event['who']}: {event['why']}"
    words = ", ".join(sorted({f"{one['what']} {one['name']}" for one in event["findings"]})) or "nothing beyond chance"
    return when, f"look: {event['level']}", f"{count_text(event['n_patients'], 'patient')}; {words}"
