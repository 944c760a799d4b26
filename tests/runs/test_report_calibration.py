"""The calibration section of a report page."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.runs.reliability_chart import reliability_chart
from fedimaging.runs.report import write_page
from fedimaging.runs.report_calibration import calibration_view
from fedimaging.training.calibration import Forecasts, calibration


def table(patients: int, *, temperature: float = 1.0, **more: Any) -> dict[str, Any]:
    draw = np.random.default_rng(patients)
    odds = draw.normal(0, 2, patients)
    happened = (draw.random(patients) < 1 / (1 + np.exp(-odds))).astype(float)
    found = Forecasts(1 / (1 + np.exp(-temperature * odds)), happened, np.arange(patients))
    return calibration(found, least=10, resamples=100, seed=0).as_json() | more


def report(**calibration: Any) -> dict[str, Any]:
    block = {"kind": "binary", "tempering": None, "before": None, "after": None} | calibration
    return {
        "schema": "fedimaging-report/1", "task": {"kind": "binary", "class_names": ["healthy", "ill"]},
        "sites": {"north": {"role": "train"}, "few": {"role": "train"}}, "calibration": block,
    }


def tables(temperature: float) -> dict[str, Any]:
    return {
        "test": table(200, temperature=temperature), "held_out": None,
        "sites": {"north": table(100, temperature=temperature, p_adjusted=0.004), "few": None},
        "groups": {"sex": {"F": table(50, temperature=temperature, p_adjusted=0.4)}},
    }


TEMPERING = {
    "temperature": {"value": 2.0, "low": 1.5, "high": 2.6}, "bias": 0.0, "words": "Temperature 2.00, fitted to sums.",
    "sites": {"north": {"value": 2.0, "low": 1.5, "high": 2.6}, "south": {"value": None, "low": None, "high": None}},
    "refused": {"west": "budget_exceeded"},
    "charge": {"unit": "patient", "delta": 1e-5, "sites": {"north": {"noise_multiplier": 4.0, "epsilon": 0.901}}},
}


def test_before_and_after_stand_beside_each_other_and_small_sets_are_left_out() -> None:
    view = calibration_view(report(before=tables(2.0), after=tables(1.0), tempering=TEMPERING))
    assert view is not None
    assert [row.name for row in view.rows] == ["All test patients", "north", "Sex: F"]
    assert view.series == ("as trained", "tempered")
    north = view.rows[1]
    assert north.alarm
    assert not view.rows[2].alarm
    slopes = dict(north.cells)["Slope"]
    assert len(slopes) == 2
    assert re.fullmatch(r"0\.\d\d \(0\.\d\d to 0\.\d\d\)", slopes[0])
    assert dict(north.cells)["Test"][0] == "p = 0.004"
    assert dict(north.parts).keys() == {"Brier score", "Reliability", "Resolution", "Uncertainty"}
    assert (view.forecast, len(view.figures), len(view.site_figures)) == ("the probability of ill", 1, 1)
    assert "200 patients, 200 forecasts in 10 bins" in view.figures[0].note


def test_what_each_hospital_released_and_what_it_cost() -> None:
    view = calibration_view(report(tempering=TEMPERING))
    assert view is not None
    assert view.rows == ()
    assert view.temperatures == (
        ("north", "2.00 (1.50 to 2.60)", "ε = 0.91, noise multiplier 4"),
        ("south", "not told apart from noise and chance", "nothing: exact sums, without noise"),
        ("west", "released nothing (budget exceeded)", "nothing"),
    )


def test_a_minus_is_no_dash() -> None:
    shifted = table(100) | {"intercept": {"value": -3.7, "low": -4.22, "high": -3.18, "n_patients": 100}}
    view = calibration_view(report(before=tables(1.0) | {"test": shifted}))
    assert view is not None
    assert dict(view.rows[0].cells)["Intercept"] == ("−3.70 (−4.22 to −3.18)",)


def test_a_diagram_has_a_mark_and_a_bar_a_bin_and_says_it_in_words() -> None:
    bins = table(200, temperature=2.0)["bins"]
    chart = str(reliability_chart("Reliability", [("as trained", bins), ("tempered", bins)]))
    assert chart.count('class="mark s0"') == chart.count('class="mark s1"') == chart.count('class="share s0"') == 10
    label = re.search(r'aria-label="([^"]*)"', chart)
    assert label is not None
    assert f"forecast {bins[0]['forecast']:.2f} happened {bins[0]['happened']['value']:.2f}" in label[1]
    heights = [float(one) for one in re.findall(r'class="share s0"[^>]*height="([\d.]+)"', chart)]
    widths = [float(one) for one in re.findall(r'class="share s0"[^>]*width="([\d.]+)%"', chart)]
    assert heights[int(np.argmin(widths))] == max(heights)


def test_a_page_has_the_section_where_there_is_something_to_show(tmp_path: Path) -> None:
    for name, block, there in (("with", {"before": tables(2.0), "tempering": TEMPERING}, True), ("without", {}, False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report(**block)))
        page = write_page(tmp_path / name).read_text(encoding="utf-8")
        assert ('id="calibration"' in page) == there == ('href="#calibration"' in page)
    old = report()
    del old["calibration"]  # a run of an earlier version
    assert calibration_view(old) is None
