"""Bland and Altman's chart: each scan a dot, its mean size across and predicted minus true up, and the limits of agreement."""

from collections.abc import Sequence

from markupsafe import Markup

from fedimaging.runs.charts import PLOT_HEIGHT, grid, height_of, percent, round_axis


def agreement_chart(
    title: str, points: Sequence[tuple[float, float]], limits: Sequence[tuple[str, float]], unit: str
) -> Markup:
    """`points`: (mean of both sizes, predicted minus true). `limits`: named horizontal lines, the bias first. Empty without
    points."""
    if not points:
        return Markup("")
    across = round_axis([x for x, _ in points])
    up = round_axis([*(y for _, y in points), *(value for _, value in limits), 0.0])
    dots = Markup("").join(
        Markup('<circle class="dot site" cx="{}%" cy="{}" r="2.2"/>').format(percent(across, x), height_of(up, y))
        for x, y in points
    )
    named = Markup("").join(
        Markup('<line class="{2}" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="tick" x="100%" y="{1}" text-anchor="end">'
               "{3}</text>").format(
            height_of(up, value), height_of(up, value) - 4, "line main" if place == 0 else "reference", f"{name} {value:.3g}")
        for place, (name, value) in enumerate(limits)
    )  # fmt: skip
    words = "; ".join(f"{name} {value:.3g} {unit}" for name, value in limits)
    frame = Markup('<svg class="plot" role="img" aria-label="{}" width="100%" height="{}" overflow="visible">{}</svg>')
    label = f"{title}: {len(points)} scans; {words}"
    return frame.format(label, PLOT_HEIGHT, grid(across, up, f"mean of true and predicted size, {unit}") + dots + named)
