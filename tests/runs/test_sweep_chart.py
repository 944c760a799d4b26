"""The budget axis: logarithmic, with infinity at the right edge."""

import math
from xml.etree import ElementTree

import pytest

from fedimaging.runs.charts import PLOT_HEIGHT
from fedimaging.runs.sweep_chart import Point, Series, budget_chart


def _find(svg: str, tag: str, look: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(svg).iter(tag) if look in e.get("class", "").split()]


def test_budgets_lie_by_their_logarithm_and_infinity_apart() -> None:
    points = tuple(Point(epsilon, 0.5) for epsilon in (0.5, 2.0, 8.0, math.inf))
    svg = str(budget_chart("AUROC", [Series("patient", "s0", points)]))
    places = [float(dot.get("cx", "").rstrip("%")) for dot in _find(svg, "circle", "dot")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert places[3] - places[2] > 10
    assert places[3] == 95
    polyline, = _find(svg, "polyline", "line")
    assert len(polyline.get("points", "").split()) == 3  # no line leads to infinity
    assert [e.text for e in _find(svg, "text", "tick")][-5:-1] == ["0.5", "2", "8", "∞"]


def test_intervals_are_drawn_where_the_numbers_say() -> None:
    svg = str(budget_chart("AUROC", [Series("a", "s0", (Point(1, 0.5, 0.0, 1.0),))], bounded=True))
    whisker, = _find(svg, "line", "whisker")
    assert (float(whisker.get("y1", "")), float(whisker.get("y2", ""))) == (PLOT_HEIGHT, 0)
    assert "ε = 1: 0.5 (0 to 1)" in svg


def test_intervals_that_leave_0_to_1_do_not_stretch_a_bounded_axis() -> None:
    svg = str(budget_chart("AUROC", [Series("a", "s0", (Point(1, 0.5, -6.0, 7.0),))], bounded=True))
    assert [e.text for e in _find(svg, "text", "tick")][:6] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def test_series_at_the_same_budget_stand_beside_each_other() -> None:
    svg = str(budget_chart("AUROC", [Series(name, look, (Point(1, 0.5),)) for name, look in (("a", "s0"), ("b", "s1"))]))
    first, second = (float(dot.get("cx", "").rstrip("%")) for dot in _find(svg, "circle", "dot"))
    assert second > first


def test_names_are_escaped_and_nothing_gives_nothing() -> None:
    svg = str(budget_chart("<b>", [Series("<i>", "s0", (Point(1, 0.5),))], references=[("<u>", 0.4)]))
    ElementTree.fromstring(svg)
    assert "<i>" not in svg
    assert budget_chart("AUROC", [Series("a", "s0", ())]) == ""
