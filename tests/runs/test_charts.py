"""Charts: well-formed SVG whose marks stand where the numbers say."""

import math
from xml.etree import ElementTree

import pytest

from fedimaging.results import Interval
from fedimaging.runs.charts import (
    PLOT_HEIGHT,
    Axis,
    Line,
    budget_bar,
    interval_row,
    interval_ruler,
    line_chart,
    round_axis,
    share_bar,
)


def find(svg: str, tag: str, look: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(svg).iter(tag) if look in e.get("class", "").split()]


@pytest.mark.parametrize(("values", "options", "ticks"), [
    ([0.61, 0.93], {"bounded": True}, (0.6, 0.7, 0.8, 0.9, 1.0)),
    ([0.97, 1.02], {"bounded": True}, (0.97, 0.98, 0.99, 1.0)),
    ([2.3, 7.98], {"from_zero": True}, (0, 2, 4, 6, 8)),
    ([math.nan], {}, (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    ([5.0, 5.0], {}, (4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6)),
])
def test_axes_have_round_ticks_around_the_values(values: list, options: dict, ticks: tuple) -> None:
    assert round_axis(values, **options).ticks == pytest.approx(ticks)


def test_tick_texts_have_the_decimals_of_their_step() -> None:
    assert round_axis([0.8, 0.95], bounded=True).tick_texts() == ["0.80", "0.85", "0.90", "0.95"]
    assert round_axis([0, 4000]).tick_texts()[-1] == "4,000"


def test_a_line_stands_at_its_values_and_skips_what_was_not_measured() -> None:
    svg = line_chart("AUROC", [Line("all", [(1, 0.0), (2, None), (3, 0.5), (5, 1.0)])], bounded=True)
    [path] = find(svg, "polyline", "main")
    assert path.get("points") == f"0.0,{PLOT_HEIGHT:.1f} 500.0,{PLOT_HEIGHT / 2} 1000.0,0.0"
    assert [dot.get("cx") for dot in find(svg, "circle", "main")] == ["0.0%", "50.0%", "100.0%"]


def test_a_chart_reads_aloud_and_holds_no_markup_of_names() -> None:
    svg = line_chart("Loss", [Line('<b>"x"', [(1, 0.7), (9, 0.3)])])
    label = ElementTree.fromstring(svg).get("aria-label")
    assert label == 'Loss. <b>"x": 0.7 in round 1, 0.3 in round 9.'


def test_a_budget_is_a_named_line_within_the_axis() -> None:
    svg = line_chart("Spent", [Line("a", [(1, 1.0), (2, 3.0)])], limit=("budget", 8.0), from_zero=True)
    [limit] = find(svg, "line", "limit")
    assert limit.get("y1") == "0.0"
    assert [name.text for name in find(svg, "text", "limit-name")] == ["budget"]


@pytest.mark.parametrize("points", [[], [(1, None)], [(1, math.nan)], [(1, math.inf)]])
def test_nothing_measured_is_no_chart(points: list) -> None:
    assert line_chart("AUROC", [Line("all", points)]) == ""


def test_one_round_is_one_dot() -> None:
    [dot] = find(line_chart("Loss", [Line("all", [(4, 0.7)])]), "circle", "main")
    assert (dot.get("cx"), float(dot.get("cy", "0"))) == ("50.0%", PLOT_HEIGHT / 2)


def test_an_interval_is_a_mark_with_a_whisker() -> None:
    axis = Axis(0.5, 1.0, (0.5, 1.0))
    row = interval_row([("a", Interval(0.75, 0.6, 0.9, 10)), ("b", Interval(0.8, math.nan, math.nan, 10))], axis)
    [whisker] = find(row, "line", "whisker")
    assert (whisker.get("x1"), whisker.get("x2")) == ("20.0%", "80.0%")
    shapes = [find(row, "path", look)[0].get("d") for look in ("s0", "s1")]
    assert shapes[0] != shapes[1]
    assert [text.text for text in ElementTree.fromstring(interval_ruler(axis))] == ["0.5", "1.0"]


def test_undefined_and_absent_intervals_draw_nothing() -> None:
    row = interval_row([("a", Interval(math.nan, math.nan, math.nan, 3)), ("b", None)], round_axis([0.5, 1.0]))
    assert not find(row, "path", "mark")


@pytest.mark.parametrize(("spent", "budget", "width", "look"), [
    (2.0, 8.0, "25.0%", "within"), (8.0, 8.0, "100.0%", "within"), (8.1, 8.0, "100.0%", "over"),
    (math.inf, 8.0, "100.0%", "over"), (0.0, 0.0, "100.0%", "within"),
])
def test_budget_bars(spent: float, budget: float, width: str, look: str) -> None:
    [fill] = find(budget_bar(spent, budget), "rect", "fill")
    assert (fill.get("width"), look in fill.get("class", "")) == (width, True)


def test_shares_fill_the_bar() -> None:
    pieces = find(share_bar([("training", 3.0), ("nothing", 0.0), ("rest", 1.0)]), "rect", "share")
    assert [(p.get("x"), p.get("width")) for p in pieces] == [("0.00%", "75.00%"), ("75.00%", "25.00%")]
    assert share_bar([("training", 0.0)]) == ""
