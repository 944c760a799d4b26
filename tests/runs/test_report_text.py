"""Words and numbers: rounding never flatters a privacy figure."""

import math

import pytest

from fedimaging.runs.report_text import (
    bytes_text,
    count_text,
    delta_text,
    duration_text,
    epsilon_text,
    interval_text,
    likelihood_factor_text,
    metric_words,
    read_interval,
    rounds_text,
    short_number,
)


@pytest.mark.parametrize(("epsilon", "text"), [
    (8.0, "8"), (7.98, "7.98"), (7.981, "7.99"), (0.0001, "0.01"), (0.0, "0"), (math.inf, "∞"), (None, "unknown"),
])
def test_epsilon_is_rounded_up(epsilon: float | None, text: str) -> None:
    assert epsilon_text(epsilon) == text


@pytest.mark.parametrize(("delta", "text"), [
    (1e-4, "1×10⁻⁴"), (1.21e-5, "1.3×10⁻⁵"), (9.99e-6, "1×10⁻⁵"), (0.0, "0"), (None, "unknown"),
])
def test_delta_is_rounded_up(delta: float | None, text: str) -> None:
    assert delta_text(delta) == text


@pytest.mark.parametrize(("epsilon", "text"), [(1.0, "2.8"), (8.0, "2,981"), (30.0, "10¹⁴"), (900.0, "more than 10³⁰⁰")])
def test_the_likelihood_factor_is_rounded_up(epsilon: float, text: str) -> None:
    assert likelihood_factor_text(epsilon) == text


@pytest.mark.parametrize(("raw", "text"), [
    ({"value": 0.931, "low": 0.912, "high": 0.949, "n_patients": 9}, "0.931 (0.912–0.949)"),
    ({"value": 0.931, "low": None, "high": None}, "0.931 (no interval)"),
    ({"value": None, "low": None, "high": None, "n_patients": 3}, "not defined (one class)"),
    ({"value": math.nan}, "not defined (one class)"), ({}, "not measured"), (None, "not measured"),
])
def test_intervals_say_why_they_are_empty(raw: object, text: str) -> None:
    assert interval_text(read_interval(raw)) == text


def test_small_words() -> None:
    assert interval_text(read_interval({"value": None}), classification=False) == "not defined"
    assert metric_words("lesion_count").label == "Lesion count"
    assert [count_text(1, "patient"), count_text(2140, "patient"), count_text(None)] == ["1 patient", "2,140 patients",
                                                                                         "unknown"]
    assert [short_number(n) for n in (6_955_906, 512, None)] == ["7.0 M", "512", "unknown"]
    assert [duration_text(s) for s in (0.42, 59.7, 200, 7500)] == ["0.4 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]
    assert [bytes_text(b) for b in (999, 28_412_880, 3.4e9)] == ["999 bytes", "28.4 MB", "3.4 GB"]
    assert rounds_text([20, 14, 15, 16]) == "14–16, 20"
