"""What the page says beyond one figure over everybody."""

import math
from pathlib import Path
from typing import Any

import pytest

from fedimaging.results import Interval
from fedimaging.runs.report_matrix import matrix_view
from fedimaging.runs.report_text import difference_text
from tests.runs.test_report import interval, page_of, sample_report, words_of


def cell(value: float | None, why: str | None = None) -> dict[str, Any]:
    return {**interval(value, 0.05, 12), "why": why}


def with_matrix() -> dict[str, Any]:
    report = sample_report()
    rows = [
        {"model": "hospital_01", "of": "local_only", "cells": {
            "hospital_01": cell(0.9), "hospital_06": cell(None, "one class only"), "hospital_07": cell(0.5)}},
        {"model": "Federated", "of": "federated", "cells": {
            "hospital_01": cell(0.95), "hospital_06": cell(None, "one class only"), "hospital_07": cell(0.7)}},
    ]  # fmt: skip
    report["matrix"] = {"metric": "auroc", "hospitals": ["hospital_01", "hospital_06", "hospital_07"], "rows": rows}
    return report


def test_the_matrix_shows_value_interval_own_hospital_and_why_a_cell_is_empty(tmp_path: Path) -> None:
    view = matrix_view(with_matrix())
    assert view is not None
    cells = view.rows[0][2]
    assert [(c.value, c.own, c.shade) for c in cells] == [("0.900", True, 4), ("–", False, None), ("0.500", False, 0)]
    assert [c.shade for c in view.rows[1][2]] == [5, None, 2]
    assert not any(c.own for c in view.rows[1][2])
    page = page_of(tmp_path, with_matrix())
    words = words_of(page)
    assert "hospital_01 trained alone 0.900 0.850–0.950 – one class only 0.500 0.450–0.550" in words
    assert "hospital_07 233 patients held out" in words
    assert 'class="shade4 own"' in page
    assert 'href="#matrix"' in page


def test_where_lower_is_better_the_lowest_is_darkest() -> None:
    report = with_matrix()
    report["matrix"]["metric"] = "brier"
    view = matrix_view(report)
    assert view is not None
    assert [c.shade for c in view.rows[0][2]] == [1, None, 5]


def test_the_worst_hospital_and_group_are_key_figures(tmp_path: Path) -> None:
    report = sample_report()
    report["worst_hospital"] = {
        "hospital": "hospital_05", "metric": "auroc", **interval(0.871, 0.046, 58), "compared": 5, "too_few": 1}
    report["worst_group"] = {"column": "sex", "group": "F", "metric": "auroc", **interval(0.81, 0.05, 50), "compared": 2}
    words = words_of(page_of(tmp_path, report))
    assert "Worst hospital: hospital_05 0.87 0.82–0.92, 58 patients; of 5 hospitals" in words
    assert "Worst group: sex F 0.81 0.76–0.86, 50 patients; of 2 groups" in words


def test_leave_one_out_shows_both_results_and_their_paired_difference(tmp_path: Path) -> None:
    report = sample_report()
    row = {"external": interval(0.9, 0.03, 734), "internal": interval(0.941, 0.03, 122),
           "external_same": interval(0.92, 0.03, 122), "difference": interval(0.021, 0.03, 122), "why": None}  # fmt: skip
    alone = {"external": interval(None, 0, 73), "internal": interval(None, 0, 12), "external_same": interval(None, 0, 12),
             "difference": interval(None, 0, 12), "why": "one class only"}  # fmt: skip
    report["leave_one_out"] = {
        "metric": "auroc", "hospitals": {"hospital_01": row, "hospital_06": alone}, "mean": None,
        "cost": [{"hospital": "hospital_01", "training": 62.0, "evaluation": 3.0}]}  # fmt: skip
    page = page_of(tmp_path, report)
    words = words_of(page)
    assert "0.900 (0.870–0.930), 734 patients 0.941 (0.911–0.971) +0.021 (−0.009 to +0.051)" in words
    assert "not defined (one class only)" in words
    assert "hospital_01 1 min 05 s" in words
    assert 'href="#leave-one-out"' in page


def test_a_run_without_any_of_it_shows_no_empty_section(tmp_path: Path) -> None:
    page = page_of(tmp_path, sample_report())
    assert 'id="matrix"' not in page
    assert 'id="leave-one-out"' not in page


@pytest.mark.parametrize(("given", "text"), [
    (Interval(-0.02, -0.1, 0.06, 5), "−0.02 (−0.10 to +0.06)"), (Interval(0.001, math.nan, math.nan, 5), "0.00 (no interval)"),
    (None, "not defined"), (Interval(math.nan, math.nan, math.nan, 0), "not defined"),
])  # fmt: skip
def test_a_difference_has_a_sign(given: Interval | None, text: str) -> None:
    assert difference_text(given, 2) == text


def rates(value: float, patients: int) -> dict[str, Any]:
    return {name: interval(value, 0.04, patients) for name in ("sensitivity", "specificity", "ppv", "npv")}


def test_the_operating_point_is_shown_with_every_rate_and_who_chose_it(tmp_path: Path) -> None:
    report = sample_report()
    report["operating_point"] = {
        "aim": "sensitivity", "target": 0.9, "threshold": 0.31, "from": "scores", "why": None,
        "validation": {"n_patients": 150, **rates(0.9, 60)}, "test": rates(0.87, 160), "held_out": rates(0.8, 90),
        "hospitals": {"hospital_01": rates(0.88, 40), "hospital_07": {**rates(0.8, 90), "ppv": interval(None, 0, 0)}},
    }  # fmt: skip
    page = page_of(tmp_path, report)
    words = words_of(page)
    assert "A score at or above 0.31 is called positive." in words
    assert "on 150 validation patients of the training hospitals, for a sensitivity of at least 90 % there" in words
    assert "All test patients 87 % 83–91, 160 patients" in words
    assert "hospital_07 held out 80 % 76–84, 90 patients 80 % 76–84, 90 patients – nobody to count" in words
    assert 'href="#operating-point"' in page


def test_a_study_without_validation_patients_has_no_threshold_and_says_why(tmp_path: Path) -> None:
    report = sample_report()
    report["operating_point"] = {"aim": "specificity", "target": 0.8, "threshold": None, "from": None, "why": "nobody validates"}
    words = words_of(page_of(tmp_path, report))
    assert "a threshold with a specificity of at least 80 %. None was chosen: nobody validates." in words


def test_the_decision_curve_shows_the_model_beside_both_rules_and_ends_where_acting_does_harm(tmp_path: Path) -> None:
    report = sample_report()
    at = [0.1, 0.3, 0.5, 0.9]
    report["decision_curve"] = {
        "thresholds": at, "model": [interval(value, 0.02, 100) for value in (0.3, 0.2, 0.1, -5.0)],
        "treat_all": [0.25, 0.1, -0.2, -6.0],
    }  # fmt: skip
    page = page_of(tmp_path, report)
    chart = page[page.index('aria-label="Net benefit'):]
    assert "acting on the model: 0.3 in threshold probability 0.1, 0.1 in threshold probability 0.5." in chart
    assert "acting on everybody: 0.25 in threshold probability 0.1, 0.1 in threshold probability 0.3." in chart
    assert "acting on nobody: 0 in" in chart


def test_lesions_cases_and_volumes_are_shown_with_a_chart(tmp_path: Path) -> None:
    report = sample_report()
    figures = {
        "lesions": {"n": 41, "sensitivity": interval(0.83, 0.1, 30), "false_per_case": interval(0.4, 0.2, 60)},
        "sizes": {"bias": interval(-0.3, 0.1, 60), "lower": interval(-1.2, 0.2, 60), "upper": interval(0.6, 0.2, 60)},
    }  # fmt: skip
    cases = {"scans": 60, "dice": {"10": 0.2, "25": 0.5, "50": 0.7, "75": 0.8}, "sensitivity": interval(0.9, 0.05, 30),
             "specificity": interval(None, 0, 0)}  # fmt: skip
    whole = {**figures, "cases": cases, "sizes": {**figures["sizes"], "points": [[2.0, -0.4], [3.0, 0.1]]}}
    report["segmentation"] = {"unit": "ml", "classes": {"lesion": whole}, "hospitals": {"hospital_01": {"lesion": figures}}}
    page = page_of(tmp_path, report)
    words = words_of(page)
    assert "lesion 41 0.83 (0.73–0.93) 0.40 (0.20–0.60) 0.90 (0.85–0.95) none to count" in words
    assert "0.70 (0.50–0.80); 1 in 10 below 0.20" in words
    assert "Bias −0.30 (−0.40 to −0.20) ml; 95 % of scans lie between −1.20" in words
    assert 'aria-label="Size of lesion: 2 scans; bias -0.3 ml; lower limit -1.2 ml; upper limit 0.6 ml"' in page
    assert page.count('class="dot site"') >= 2
