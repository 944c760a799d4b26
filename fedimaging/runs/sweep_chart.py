"""Charts against the privacy budget: a logarithmic axis with no privacy (ε = ∞) at its right edge, means with intervals.

As in `charts.py`: horizontal places are percentages, text keeps its size, series differ by dash and colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedimaging.runs.charts import PLOT_HEIGHT, Axis, round_axis
from fedimaging.runs.sweep_grid import epsilon_word

_INFINITY_AT = 0.95
_LAST_WITH_INFINITY = 0.78
_NEAR = 0.012  # between the marks of series at the same budget


@dataclass(frozen=True)
class Point:
    """A mean at a budget (infinity allowed), with an interval where one is known."""

    epsilon: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line. `look`: a CSS class of the page, s0 to s6 or site."""

    name: str
    look: str
    points: tuple[Point, ...]


def budget_chart(
    title: str, series: Sequence[Series], *, references: Sequence[tuple[str, float]] = (), bounded: bool = False,
    from_zero: bool = False,
) -> Markup:
    """Series over budgets; `references` are named dashed lines across. Empty where no series has a point."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup("")
    points = [point for one in drawn for point in one.points]
    ends = [end for p in points for end in (p.value, p.low, p.high) if end is not None] + [value for _, value in references]
    if bounded:  # few seeds make intervals that leave 0..1; the axis does not
        ends = [min(1.0, max(0.0, end)) for end in ends]
    up = round_axis(ends, bounded=bounded, from_zero=from_zero)
    place = _places(sorted({point.epsilon for point in points}))
    body = [_grid(up, place), *(_reference(name, value, up, k) for k, (name, value) in enumerate(references))]
    for number, one in enumerate(drawn):
        aside = (number - (len(drawn) - 1) / 2) * _NEAR
        body.append(_drawn(one, place, up, aside))
    label = f"{title}. " + " ".join(_words(one) for one in drawn[:12])
    frame = Markup('<svg class="plot" role="img" aria-label="{}" width="100%" height="{}" overflow="visible">{}</svg>')
    return frame.format(label, PLOT_HEIGHT, Markup("").join(body))


def _places(epsilons: Sequence[float]) -> dict[float, float]:
    """Budget -> fraction of the width: finite ones by their logarithm, infinity apart at the right."""
    finite = [epsilon for epsilon in epsilons if math.isfinite(epsilon)]
    endless = len(finite) < len(epsilons)
    last = _LAST_WITH_INFINITY if endless else _INFINITY_AT
    places = {}
    for epsilon in finite:
        span = math.log(finite[-1] / finite[0]) if len(finite) > 1 else 0.0
        part = math.log(epsilon / finite[0]) / span if span else 0.5
        places[epsilon] = 0.05 + part * (last - 0.05)
    if endless:
        places[math.inf] = _INFINITY_AT if finite else 0.5
    return places


def _grid(up: Axis, place: dict[float, float]) -> Markup:
    rows = [
        Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="tick" x="-8" y="{0}" dy="0.32em" '
               'text-anchor="end">{1}</text>').format(_y(up, tick), text)
        for tick, text in zip(up.ticks, up.tick_texts(), strict=True)
    ]
    columns = [
        Markup('<text class="tick" x="{}%" y="{}" text-anchor="middle">{}</text>').format(
            _percent(x), PLOT_HEIGHT + 18, "∞" if math.isinf(epsilon) else epsilon_word(epsilon))
        for epsilon, x in place.items()
    ]
    name = Markup('<text class="tick" x="50%" y="{}" text-anchor="middle">ε (logarithmic; ∞ is no privacy)</text>')
    return Markup("").join([*rows, *columns, name.format(PLOT_HEIGHT + 34)])


def _reference(name: str, value: float, up: Axis, number: int) -> Markup:
    y, x = _y(up, value), 2 + 30 * number  # side by side: two lines may lie close to each other
    return Markup('<line class="reference" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="tick" x="{1}%" y="{2}">{3} '
                  "{4:.4g}</text>").format(y, x, y - 5 if y > 16 else y + 14, name, value)


def _drawn(one: Series, place: dict[float, float], up: Axis, aside: float) -> Markup:
    points = sorted(one.points, key=lambda point: point.epsilon)
    finite = [point for point in points if math.isfinite(point.epsilon)]
    way = " ".join(f"{(place[p.epsilon] + aside) * 1000:.1f},{_y(up, p.value)}" for p in finite)
    line = Markup('<svg width="100%" height="{0}" viewBox="0 0 1000 {0}" preserveAspectRatio="none" overflow="visible">'
                  '<polyline class="line {1}" points="{2}" vector-effect="non-scaling-stroke"/></svg>')
    parts = [line.format(PLOT_HEIGHT, one.look, way)] if len(finite) > 1 else []
    for point in points:
        x = _percent(place[point.epsilon] + aside)
        spread = ""
        if point.low is not None and point.high is not None:
            spread = f" ({point.low:.4g} to {point.high:.4g})"
            parts.append(Markup('<line class="whisker {}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(
                one.look, x, x, _y(up, point.low), _y(up, point.high)))
        parts.append(Markup('<circle class="dot {}" cx="{}%" cy="{}" r="{}"><title>{}, ε = {}: {:.4g}{}</title></circle>').format(
            one.look, x, _y(up, point.value), 2 if one.look == "site" else 3.5, one.name, epsilon_word(point.epsilon),
            point.value, spread))
    return Markup("").join(parts)


def _words(one: Series) -> str:
    return f"{one.name}: " + ", ".join(f"{point.value:.4g} at ε {epsilon_word(point.epsilon)}" for point in one.points) + "."


def _y(axis: Axis, value: float) -> float:
    return round((1 - axis.fraction(value)) * PLOT_HEIGHT, 2)


def _percent(fraction: float) -> float:
    return round(fraction * 100, 3)
