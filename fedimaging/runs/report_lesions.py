"""Segmentation lesion by lesion, case by case and by volume, as the report page shows it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedimaging.runs.agreement_chart import agreement_chart
from fedimaging.runs.report_curves import Figure
from fedimaging.runs.report_text import count_text, difference_text, humanise, read_interval, spread_text
from fedimaging.runs.report_view import Report, part

_COLUMNS = (
    ("Lesions", "n"), ("Found", "sensitivity"), ("False ones a scan", "false_per_case"), ("Scans with a lesion found", "ill"),
    ("Scans without, left empty", "well"), ("Dice of the scans", "dice"),
)


@dataclass(frozen=True)
class Lesions:
    """`columns` and `rows` (class, cells), `hospitals` (hospital, class, found, false, bias), and a chart a class."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    hospitals: tuple[tuple[str, str, str, str, str], ...]
    figures: tuple[Figure, ...]


def lesions_view(report: Report) -> Lesions | None:
    """None for a run without segmentations scan by scan."""
    table = part(report, "segmentation")
    if not table:
        return None
    unit, classes = table["unit"], table["classes"]
    return Lesions(
        tuple(name for name, _ in _COLUMNS), tuple((name, _cells(one)) for name, one in classes.items()),
        tuple(
            (hospital, name, _words(one["lesions"]["sensitivity"], 2), _words(one["lesions"]["false_per_case"], 2),
             f"{difference_text(read_interval(one['sizes']['bias']), 2)} {unit}")
            for hospital, found in table["hospitals"].items() for name, one in found.items()
        ),
        tuple(_figure(name, one["sizes"], unit) for name, one in classes.items()),
    )  # fmt: skip


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    lesions, cases = one["lesions"], one["cases"]
    dice = cases["dice"]
    middle = "" if dice["50"] is None else f"{dice['50']:.2f} ({dice['25']:.2f}–{dice['75']:.2f}); 1 in 10 below {dice['10']:.2f}"
    return (
        count_text(lesions["n"]), _words(lesions["sensitivity"], 2), _words(lesions["false_per_case"], 2),
        _words(cases["sensitivity"], 2), _words(cases["specificity"], 2), middle or "not defined",
    )  # fmt: skip


def _words(raw: Mapping[str, Any], digits: int) -> str:
    found = read_interval(raw)
    if found is None or math.isnan(found.value):
        return "none to count"
    return f"{found.value:.{digits}f} ({spread_text(found, digits)})"


def _figure(name: str, sizes: Mapping[str, Any], unit: str) -> Figure:
    ends = (("bias", "bias"), ("lower limit", "lower"), ("upper limit", "upper"))
    limits = [(words, sizes[key]["value"]) for words, key in ends]
    known = [(words, value) for words, value in limits if value is not None]
    bias, lower, upper = (difference_text(read_interval(sizes[key]), 2) for key in ("bias", "lower", "upper"))
    chart = agreement_chart(f"Size of {name}", [(x, y) for x, y in sizes["points"]], known, unit)
    return Figure(
        f"{humanise(name)}: predicted minus true size, {unit}", chart,
        note=f"Bias {bias} {unit}; 95 % of scans lie between {lower} and {upper} {unit}, if the differences are normal "
             "(Bland and Altman).",
    )  # fmt: skip
