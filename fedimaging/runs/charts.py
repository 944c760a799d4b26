"""Small charts as inline SVG: lines over rounds, dots with intervals, budget bars.

Horizontal positions are percentages and text keeps its size, so one chart reads at 400 and at 1400 px. Colours are CSS
classes (`templates/style.css.j2` holds a colour-blind safe palette, after Okabe and Ito 2008, for light and dark);
every series also differs by shape or dash, and every chart carries its content as an accessible label.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fedimaging.results import Interval

PLOT_HEIGHT = 190  # px; the y coordinates below are px, the x coordinates percent
_VIEW_WIDTH = 1000  # x units of the stretched layer that holds the polylines
_MOST_DOTS = 24  # a line with more points is drawn without dots


@dataclass(frozen=True)
class Axis:
    """A linear scale with round tick values; `low` < `high`."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def fraction(self, value: float) -> float:
        """Where `value` lies, 0 at `low` and 1 at `high`; values outside are held at the ends."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def tick_texts(self) -> list[str]:
        """Tick labels with as many decimals as their step needs."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [f"{tick:,.{digits}f}" for tick in self.ticks]


@dataclass(frozen=True)
class Line:
    """One line: (x, y) points, y None or not finite where nothing was measured. `look` is a CSS class."""

    name: str
    points: Sequence[tuple[float, float | None]]
    look: str = "main"

    def measured(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def round_axis(values: Iterable[float], *, bounded: bool = False, from_zero: bool = False, most_ticks: int = 5) -> Axis:
    """An axis with round ticks around the finite `values`; `bounded` keeps it within 0..1; 0..1 without values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if from_zero:
        low = min(0.0, low)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - (0.05 if bounded else 0.5), high + (0.05 if bounded else 0.5)
    step = _round_step((high - low) / most_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if bounded:
        first, last = max(first, 0), min(last, round(1 / step))
    if from_zero:
        first = max(first, 0) if low >= 0 else first
    return Axis(first * step, last * step, tuple(round(k * step, 12) for k in range(first, last + 1)))


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * lead for lead in (1, 2, 5, 10) if power * lead >= least * (1 - 1e-9))


def _rounds_axis(xs: Sequence[float]) -> Axis:
    """Whole rounds from the first to the last, at most eight ticks."""
    low, high = min(xs), max(xs)
    if low == high:
        return Axis(low - 1, high + 1, (low,))
    step = max(1.0, _round_step((high - low) / 6))
    inner = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    near = 0.35 * step  # a tick this close to an end would print over the end's own label
    middle = [tick for tick in inner if tick - low > near and high - tick > near]
    return Axis(low, high, (low, *middle, high))


def line_chart(
    title: str, lines: Sequence[Line], *, limit: tuple[str, float] | None = None, across: Axis | None = None,
    across_name: str = "round", **axis: bool,
) -> Markup:
    """Lines over rounds, or over whatever `across` measures. `limit` is a named dashed horizontal line; `axis` goes to
    `round_axis`. Empty: no points."""
    drawn = [line for line in lines if line.measured()]
    if not drawn:
        return Markup("")
    xs = [x for line in drawn for x, _ in line.measured()]
    ys = [y for line in drawn for _, y in line.measured()] + ([limit[1]] if limit else [])
    across, up = across or _rounds_axis(xs), round_axis(ys, **axis)
    back_to_front = sorted(drawn, key=lambda line: line.look == "main")
    body = Markup("").join([
        grid(across, up, across_name),
        Markup('<svg width="100%" height="{0}" viewBox="0 0 {1} {0}" preserveAspectRatio="none" overflow="visible">{2}'
               "</svg>").format(PLOT_HEIGHT, _VIEW_WIDTH, Markup("").join(_path(e, across, up) for e in back_to_front)),
        *(_dots(line, across, up, across_name) for line in back_to_front),
        _limit(limit, up) if limit else Markup(""),
    ])
    label = f"{title}. " + " ".join(_line_words(line, across_name) for line in drawn[:12])
    frame = Markup('<svg class="plot" role="img" aria-label="{}" width="100%" height="{}" overflow="visible">{}</svg>')
    return frame.format(label, PLOT_HEIGHT, body)


def _line_words(line: Line, across_name: str) -> str:
    points = line.measured()
    (x0, y0), (x1, y1) = points[0], points[-1]
    return f"{line.name}: {y0:.4g} in {across_name} {x0:g}, {y1:.4g} in {across_name} {x1:g}."


def height_of(axis: Axis, value: float) -> float:
    """y of a value, px from the top of a chart of PLOT_HEIGHT."""
    return round((1 - axis.fraction(value)) * PLOT_HEIGHT, 2)


def percent(axis: Axis, value: float) -> float:
    """x of a value, percent of the width."""
    return round(axis.fraction(value) * 100, 3)


def grid(across: Axis, up: Axis, across_name: str) -> Markup:
    """Horizontal lines and the labels of both axes of a chart of PLOT_HEIGHT."""
    rows = [
        Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="tick" x="-8" y="{0}" dy="0.32em" '
               'text-anchor="end">{1}</text>').format(height_of(up, tick), text)
        for tick, text in zip(up.ticks, up.tick_texts(), strict=True)
    ]
    columns = [
        Markup('<text class="tick" x="{}%" y="{}" text-anchor="middle">{:g}</text>').format(
            percent(across, tick), PLOT_HEIGHT + 18, tick)
        for tick in across.ticks
    ]
    name = Markup('<text class="tick" x="50%" y="{}" text-anchor="middle">{}</text>').format(PLOT_HEIGHT + 34, across_name)
    return Markup("").join([*rows, *columns, name])


def _path(line: Line, across: Axis, up: Axis) -> Markup:
    points = " ".join(f"{across.fraction(x) * _VIEW_WIDTH:.1f},{height_of(up, y)}" for x, y in line.measured())
    return Markup('<polyline class="line {}" points="{}" vector-effect="non-scaling-stroke"><title>{}</title>'
                  "</polyline>").format(line.look, points, line.name)


def _dots(line: Line, across: Axis, up: Axis, across_name: str) -> Markup:
    points = line.measured()
    if len(points) > _MOST_DOTS:
        return Markup("")
    radius = 1.6 if line.look.startswith("site") and len(points) > 1 else 3
    return Markup("").join(
        Markup('<circle class="dot {}" cx="{}%" cy="{}" r="{}"><title>{}, {} {:g}: {:.4g}</title></circle>').format(
            line.look, percent(across, x), height_of(up, y), radius, line.name, across_name, x, y)
        for x, y in points
    )


def _limit(limit: tuple[str, float], up: Axis) -> Markup:
    y = height_of(up, limit[1])
    return Markup('<line class="limit" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="limit-name" x="6" y="{1}">'
                  "{2}</text>").format(y, y + 15, limit[0])


def interval_row(intervals: Sequence[tuple[str, Interval | None]], axis: Axis) -> Markup:
    """One row of a dot plot: per named series a mark with its 95 % interval, series k in look `s<k>`.

    Marks differ by shape (disc, diamond, square) as well as colour. Intervals that are absent or not defined draw
    nothing; the words belong into the cell beside the row.
    """
    height = 22 if len(intervals) < 2 else 12 + 11 * len(intervals)
    ticks = Markup("").join(
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="{1}"/><text class="tick" x="{0}%" y="{2}" '
               'text-anchor="middle">{3}</text>').format(percent(axis, tick), height, height + 11, text)
        for tick, text in zip(axis.ticks, axis.tick_texts(), strict=True)
    )
    marks = [
        _interval_mark(name, interval, axis, y=11 if len(intervals) < 2 else 11.5 + 11 * k, look=k)
        for k, (name, interval) in enumerate(intervals)
        if interval is not None and math.isfinite(interval.value)
    ]
    return Markup('<svg class="dots" width="100%" height="{}" overflow="visible" aria-hidden="true">{}{}</svg>').format(
        height, ticks, Markup("").join(marks)
    )


def _interval_mark(name: str, interval: Interval, axis: Axis, *, y: float, look: int) -> Markup:
    x = percent(axis, interval.value)
    whisker = Markup("")
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        whisker = Markup('<line class="whisker s{0}" x1="{1}%" x2="{2}%" y1="{3}" y2="{3}"/>').format(
            look, percent(axis, interval.low), percent(axis, interval.high), y)
    title = f"{name}: {interval.value:.3f}"
    # A zero-size nested svg moves the origin to a percentage, where a path in px can be drawn undistorted.
    return Markup('{}<svg x="{}%" y="{}" width="1" height="1" overflow="visible"><path class="mark s{}" d="{}">'
                  "<title>{}</title></path></svg>").format(whisker, x, y, look, MARKS[look % len(MARKS)], title)


MARKS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "M0-5.5L5.5 0L0 5.5L-5.5 0Z",
    "M-4-4H4V4H-4Z",
)


def mark_key(number: int) -> Markup:
    """The mark of series `number` of an `interval_row`, for a legend."""
    return Markup('<svg width="12" height="12" viewBox="-6 -6 12 12" aria-hidden="true"><path class="mark s{}" d="{}"/>'
                  "</svg>").format(number, MARKS[number % len(MARKS)])


def line_key(look: str) -> Markup:
    """A piece of a line in a look, for a legend."""
    return Markup('<svg width="26" height="8" aria-hidden="true"><line class="line {}" x1="0" x2="26" y1="4" y2="4"/>'
                  "</svg>").format(look)


def share_key(number: int) -> Markup:
    """The swatch of part `number` of a `share_bar`, for a legend."""
    return Markup('<svg width="12" height="12" aria-hidden="true"><rect class="share s{}" width="12" height="12" '
                  'rx="2"/></svg>').format(number)


def interval_ruler(axis: Axis) -> Markup:
    """The tick labels that stand above a column of `interval_row`s drawn on the same axis."""
    tick = Markup('<text class="tick" x="{}%" y="11" text-anchor="middle">{}</text>')
    ticks = [tick.format(percent(axis, at), text) for at, text in zip(axis.ticks, axis.tick_texts(), strict=True)]
    frame = Markup('<svg class="ruler" width="100%" height="14" overflow="visible" aria-hidden="true">{}</svg>')
    return frame.format(Markup("").join(ticks))


def budget_bar(spent: float, budget: float) -> Markup:
    """How much of a budget is spent; a full bar in the warning look when it is passed."""
    share = 1.0 if budget <= 0 or not math.isfinite(spent) else min(1.0, spent / budget)
    look = "over" if spent > budget else "within"
    return Markup('<svg class="bar" role="img" aria-label="{0:.0f} % of the budget" width="100%" height="8">'
                  '<rect class="track" width="100%" height="8" rx="4"/>'
                  '<rect class="fill {1}" width="{0:.1f}%" height="8" rx="4"/></svg>').format(share * 100, look)


def share_bar(parts: Sequence[tuple[str, float]]) -> Markup:
    """Parts of a whole side by side, part k in look `s<k>`; empty when nothing is positive."""
    positive = [(k, name, size) for k, (name, size) in enumerate(parts) if size > 0]
    whole = sum(size for *_, size in positive)
    pieces, left = [], 0.0
    for k, name, size in positive:
        width = 100 * size / whole
        pieces.append(Markup('<rect class="share s{}" x="{:.2f}%" width="{:.2f}%" height="14">'
                             "<title>{}: {:.0f} %</title></rect>").format(k, left, width, name, width))
        left += width
    if not pieces:
        return Markup("")
    label = ", ".join(f"{name} {100 * size / whole:.0f} %" for _, name, size in positive)
    return Markup('<svg class="shares" role="img" aria-label="{}" width="100%" height="14">{}</svg>').format(
        escape(label), Markup("").join(pieces)
    )
