"""A step chart over days: what stood at every moment, with its limits. Inline SVG in the look of `charts.py`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedimaging.runs.charts import PLOT_HEIGHT, Axis, round_axis

_VIEW_WIDTH = 1000  # x units of the stretched layer that holds the steps
_DAY = 86400.0
_TICKS = 3  # dates are wide: more would touch on a telephone


@dataclass(frozen=True)
class Course:
    """What held from each moment on: (seconds since 1970, value), in order. `limit`: a level not to pass, with `name`."""

    name: str
    points: Sequence[tuple[float, float]]
    look: str
    limit: float


def time_chart(title: str, courses: Sequence[Course]) -> Markup:
    """Steps over time with a dashed line at each limit; empty where no course has a point. Values are from 0 up."""
    drawn = [course for course in courses if course.points]
    if not drawn:
        return Markup("")
    moments = [moment for course in drawn for moment, _ in course.points]
    first, last = min(moments), max(moments)
    across = Axis(first, last if last > first else first + _DAY, ())
    up = round_axis([v for course in drawn for v in (course.limit, *(y for _, y in course.points))], from_zero=True)
    steps = Markup("").join(_steps(course, across, up) for course in reversed(drawn))
    body = Markup("").join([
        _grid(across, up),
        Markup('<svg width="100%" height="{0}" viewBox="0 0 {1} {0}" preserveAspectRatio="none" overflow="visible">{2}'
               "</svg>").format(PLOT_HEIGHT, _VIEW_WIDTH, steps),
        *(_limit(course, up, place) for place, course in enumerate(drawn)),
    ])
    label = f"{title}. " + " ".join(
        f"{course.name}: {course.points[-1][1]:.3g} of {course.limit:g} on {_day(course.points[-1][0])}." for course in drawn
    )
    frame = Markup('<svg class="plot" role="img" aria-label="{}" width="100%" height="{}" overflow="visible">{}</svg>')
    return frame.format(label, PLOT_HEIGHT, body)


def _steps(course: Course, across: Axis, up: Axis) -> Markup:
    corners, height = list[str](), 0.0
    for moment, value in course.points:
        x = across.fraction(moment) * _VIEW_WIDTH
        corners += [f"{x:.1f},{_y(up, height)}", f"{x:.1f},{_y(up, value)}"]
        height = value
    return Markup('<polyline class="line {}" points="{}" vector-effect="non-scaling-stroke"><title>{}</title>'
                  "</polyline>").format(course.look, " ".join(corners), course.name)


def _limit(course: Course, up: Axis, place: int) -> Markup:
    """Names of two limits stand at opposite ends, so that they never print over each other."""
    y, at, anchor = _y(up, course.limit), *(("0", "start") if place % 2 else ("100%", "end"))
    return Markup('<line class="limit" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="limit-name" x="{1}" y="{2}" '
                  'text-anchor="{3}">{4}</text>').format(y, at, y + 15, anchor, f"allowed {course.name}")


def _grid(across: Axis, up: Axis) -> Markup:
    rows = [
        Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="tick" x="-8" y="{0}" dy="0.32em" '
               'text-anchor="end">{1}</text>').format(_y(up, tick), text)
        for tick, text in zip(up.ticks, up.tick_texts(), strict=True)
    ]
    columns = []
    for place in range(_TICKS):
        share = place / (_TICKS - 1)
        anchor = "start" if place == 0 else "end" if place == _TICKS - 1 else "middle"
        moment = across.low + share * (across.high - across.low)
        text = _day(moment) if across.high - across.low > 3 * _DAY else time.strftime("%d %b %H:%M", time.localtime(moment))
        columns.append(Markup('<text class="tick" x="{:.1f}%" y="{}" text-anchor="{}">{}</text>').format(
            share * 100, PLOT_HEIGHT + 18, anchor, text))
    return Markup("").join([*rows, *columns])


def _y(up: Axis, value: float) -> float:
    return round((1 - up.fraction(value)) * PLOT_HEIGHT, 2)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(moment))
