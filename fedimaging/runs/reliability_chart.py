"""A reliability diagram as inline SVG, in the manner of `charts.py`: forecast against frequency, and how forecasts lie."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fedimaging.runs.charts import MARKS, PLOT_HEIGHT
from fedimaging.runs.report_text import count_text, interval_text, read_interval

_STRIP_HEIGHT = 34  # px
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_THINNEST = 0.004  # of the width: a bin of forecasts that are all one is still to be seen

Bins = Sequence[Mapping[str, Any]]


def reliability_chart(title: str, series: Sequence[tuple[str, Bins]]) -> Markup:
    """Per named series a mark a bin, with the 95 % interval of its frequency, on the diagonal where forecasts are right; below,
    a strip a series whose bars show how dense forecasts are (bins hold equally many, so a bar is high where it is narrow).

    Bins as `training.calibration.ReliabilityBin` stands in report.json. Series k in look `s<k>`, with a shape of its own.
    """
    label = f"{title}. " + " ".join(_words(name, bins) for name, bins in series)
    marks = [_bin_mark(name, one, look) for look, (name, bins) in enumerate(series) for one in bins]
    frame = Markup('<svg class="plot" role="img" aria-label="{}" width="100%" height="{}" overflow="visible">{}</svg>')
    top = PLOT_HEIGHT + 44
    strips = [_strip(name, bins, look, top + look * (_STRIP_HEIGHT + 8)) for look, (name, bins) in enumerate(series)]
    height = top + len(series) * (_STRIP_HEIGHT + 8)
    return frame.format(label, height, Markup("").join([_grid(), *marks, *strips]))


def _grid() -> Markup:
    rows = [
        Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="tick" x="-8" y="{0}" dy="0.32em" '
               'text-anchor="end">{1:g}</text><text class="tick" x="{2}%" y="{3}" text-anchor="middle">{1:g}</text>').format(
            _y(tick), tick, 100 * tick, PLOT_HEIGHT + 18)
        for tick in _TICKS
    ]
    diagonal = Markup('<line class="reference" x1="0" y1="{}" x2="100%" y2="0"/>').format(PLOT_HEIGHT)
    name = Markup('<text class="tick" x="50%" y="{}" text-anchor="middle">forecast</text>').format(PLOT_HEIGHT + 34)
    return Markup("").join([*rows, diagonal, name])


def _bin_mark(series: str, one: Mapping[str, Any], look: int) -> Markup:
    happened = read_interval(one["happened"])
    if happened is None or math.isnan(happened.value):
        return Markup("")
    x, y = _percent(one["forecast"]), _y(happened.value)
    whisker = Markup("")
    if math.isfinite(happened.low) and math.isfinite(happened.high):
        whisker = Markup('<line class="whisker s{0}" x1="{1}%" x2="{1}%" y1="{2}" y2="{3}"/>').format(
            look, x, _y(happened.low), _y(happened.high))
    title = (
        f"{series}: forecast {one['forecast']:.2f} ({one['low']:.2f} to {one['high']:.2f}), happened "
        f"{interval_text(happened, 2)}; {count_text(one['forecasts'], 'forecast')}"
    )
    # A zero-size nested svg moves the origin to a percentage, where a path in px can be drawn undistorted.
    return Markup('{}<svg x="{}%" y="{}" width="1" height="1" overflow="visible"><path class="mark s{}" d="{}">'
                  "<title>{}</title></path></svg>").format(whisker, x, y, look, MARKS[look % len(MARKS)], title)


def _strip(series: str, bins: Bins, look: int, top: float) -> Markup:
    widths = [max(one["high"] - one["low"], _THINNEST) for one in bins]
    dense = [one["forecasts"] / width for one, width in zip(bins, widths, strict=True)]
    bars = [
        Markup('<rect class="share s{}" x="{}%" width="{}%" y="{}" height="{}"><title>{}</title></rect>').format(
            look, _percent(one["low"]), round(100 * width, 3), round(top + _STRIP_HEIGHT * (1 - math.sqrt(d / max(dense))), 2),
            round(_STRIP_HEIGHT * math.sqrt(d / max(dense)), 2),
            f"{series}: {count_text(one['forecasts'], 'forecast')} from {one['low']:.2f} to {one['high']:.2f}")
        for one, width, d in zip(bins, widths, dense, strict=True)
    ]
    base = Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(top + _STRIP_HEIGHT)
    return Markup("").join([base, *bars])


def _words(series: str, bins: Bins) -> str:
    told = [(one["forecast"], one["happened"]["value"]) for one in bins if one["happened"]["value"] is not None]
    return f"{series}: " + ", ".join(f"forecast {forecast:.2f} happened {value:.2f}" for forecast, value in told) + "."


def _y(share: float) -> float:
    return round((1 - min(1.0, max(0.0, share))) * PLOT_HEIGHT, 2)


def _percent(share: float) -> float:
    return round(100 * min(1.0, max(0.0, share)), 3)
