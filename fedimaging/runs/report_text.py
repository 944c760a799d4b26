"""How a report writes numbers and names: in plain words, and never rounding a privacy figure in its own favour."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedimaging.results import Interval

NOT_MEASURED = "not measured"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class MetricWords:
    """How one metric is called on the page, what it means, and how it reads."""

    label: str
    meaning: str = ""
    lower_is_better: bool = False
    bounded: bool = True  # between 0 and 1
    digits: int = 3


METRICS: dict[str, MetricWords] = {
    "auroc": MetricWords("AUROC", "chance that a positive case is scored above a negative one; 0.5 is guessing"),
    "average_precision": MetricWords("Average precision", "area under the precision–recall curve"),
    "balanced_accuracy": MetricWords("Balanced accuracy", "mean of the share found in each class"),
    "accuracy": MetricWords("Accuracy", "share of scans given the right class"),
    "sensitivity_at_90_specificity": MetricWords(
        "Sensitivity at 90 % specificity", "share of positives found when one negative in ten is flagged"
    ),
    "brier": MetricWords("Brier score", "squared error of the probabilities", lower_is_better=True),
    "dice": MetricWords("Dice", "overlap of predicted and true mask; 1 is perfect"),
    "surface_dice": MetricWords("Surface Dice", "share of the outline within the tolerance"),
    "hd95_mm": MetricWords(
        "HD95 (mm)", "95th percentile of the distance between outlines", lower_is_better=True, bounded=False, digits=1
    ),
    "loss": MetricWords("Loss", "what training minimises", lower_is_better=True, bounded=False),
}


def metric_words(name: str) -> MetricWords:
    """Words for a metric; an unlisted one is shown by its own name, on its own scale."""
    return METRICS.get(name, MetricWords(humanise(name), bounded=False))


def humanise(name: str) -> str:
    """`local_only` -> `Local only`."""
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def read_interval(raw: object) -> Interval | None:
    """An interval of report.json. None: not measured. NaN inside: measured and not defined."""
    if not isinstance(raw, Mapping) or "value" not in raw:
        return None
    value, low, high = (_float_or_nan(raw.get(key)) for key in ("value", "low", "high"))
    return Interval(value, low, high, int(raw.get("n_patients") or 0))


def _float_or_nan(raw: Any) -> float:
    return math.nan if raw is None else float(raw)


def interval_text(interval: Interval | None, digits: int = 3, *, classification: bool = True) -> str:
    """`0.931 (0.912–0.949)`; says so when the metric was not measured or is not defined."""
    if interval is None:
        return NOT_MEASURED
    if math.isnan(interval.value):
        return "not defined (one class)" if classification else "not defined"
    return f"{interval.value:.{digits}f} ({spread_text(interval, digits)})"


def spread_text(interval: Interval, digits: int = 3) -> str:
    """`0.912–0.949`, or that no interval is known."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "no interval"
    return f"{interval.low:.{digits}f}–{interval.high:.{digits}f}"


def difference_text(interval: Interval | None, digits: int) -> str:
    """`+0.031 (−0.004–0.060)`: a difference with its sign."""
    if interval is None or math.isnan(interval.value):
        return "not defined"
    if math.isnan(interval.low):
        return f"{_signed(interval.value, digits)} (no interval)"
    return f"{_signed(interval.value, digits)} ({_signed(interval.low, digits)} to {_signed(interval.high, digits)})"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text.lstrip("+−") if float(f"{value:.{digits}f}") == 0 else text


def epsilon_text(epsilon: float | None) -> str:
    """Two decimals, rounded up: a printed epsilon is never smaller than the one spent."""
    if epsilon is None or math.isnan(epsilon):
        return "unknown"
    if math.isinf(epsilon):
        return "∞"
    # The subtraction forgives only the last bits of binary fractions: 7.98 stays 7.98.
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}".removesuffix(".00")


def delta_text(delta: float | None) -> str:
    """`1×10⁻⁴`, the leading figure rounded up to one decimal; 0 stays 0."""
    if delta is None or math.isnan(delta):
        return "unknown"
    if delta <= 0:
        return "0"
    power = math.floor(math.log10(delta) + 1e-12)
    lead = math.ceil(delta / 10.0**power * 10 - 1e-9) / 10
    if lead >= 10:
        lead, power = 1.0, power + 1
    return f"{lead:g}×10{str(power).translate(_SUPERSCRIPT)}"


def likelihood_factor_text(epsilon: float) -> str:
    """e to the epsilon, for a sentence; past a million only the order of size is worth reading. Rounded up."""
    if epsilon > 700:
        return "more than 10³⁰⁰"
    factor = math.exp(epsilon)
    if factor < 10:
        return f"{math.ceil(factor * 10 - 1e-9) / 10:g}"
    if factor < 1e6:
        return f"{math.ceil(factor):,}"
    return "10" + str(math.ceil(math.log10(factor))).translate(_SUPERSCRIPT)


def count_text(number: float | int | None, noun: str = "", plural: str = "") -> str:
    """`2,140 patients`; `1 patient`; an absent count is `unknown`."""
    if number is None:
        return f"an unknown number of {plural or noun + 's'}" if noun else "unknown"
    digits = f"{int(number):,}"
    if not noun:
        return digits
    return f"{digits} {noun if number == 1 else plural or noun + 's'}"


def short_number(number: float | int | None) -> str:
    """`7.0 M` parameters."""
    if number is None:
        return "unknown"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:g}"


def duration_text(seconds: float | None) -> str:
    """`48 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None or math.isnan(seconds):
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bytes_text(size: float | int | None) -> str:
    """Decimal units, as networks count: `28.4 MB`."""
    if size is None:
        return "unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{int(size)} bytes"


def rounds_text(rounds: list[int]) -> str:
    """`14`, `14–16, 20`: runs of rounds, shortened."""
    spans: list[list[int]] = []
    for number in sorted(rounds):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)
