"""One temperature for a run's final model, from hospitals to calibration.json."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedimaging.errors import StudyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.tempering import SENSITIVITY, tempering_totals
from fedimaging.results import SiteCalibration
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.runs.tempering import tempering_facts, write_calibration
from fedimaging.study.load import parse
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
ASKED = (
    "evaluation.calibration=temperature", "data.phantoms.patients=60", "data.split={test: 0.3, validation: 0.3, seed: 0}",
    "federation.rounds=1",
)


def released(site: str, temperature: float, noise_std: float = 0.0, patients: int = 2000) -> SiteCalibration:
    """Of a hospital where the model's logits are too large by this factor."""
    draw = np.random.default_rng(len(site))
    odds = draw.normal(0, 2, patients)
    labels = (draw.random(patients) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    score = 1 / (1 + np.exp(-temperature * odds))
    totals = tempering_totals(np.stack([1 - score, score], axis=1), labels, np.arange(patients), "binary")
    sums = totals.arrays["tempering"] + noise_std * draw.standard_normal(9)
    return SiteCalibration(site, 1, sums.astype(np.float32), noise_std)


def test_the_temperature_is_that_of_all_and_an_odd_hospital_shows(tiny_study: MakeStudy, tmp_path: Path) -> None:
    facts = tempering_facts(
        tiny_study(), [released("north", 1.0), released("south", 1.0), released("odd", 2.5)], {"west": "budget_exceeded"})
    found = facts["temperature"]
    assert 1.0 < found["low"] < found["value"] < found["high"] < 2.5
    sites = facts["sites"]
    assert sites["odd"]["low"] < 2.5 < sites["odd"]["high"]
    assert sites["north"]["low"] < 1.0 < sites["north"]["high"] < 1.5 < 2.0 < sites["odd"]["low"]
    assert set(found) == {"value", "low", "high"}  # no number of patients
    assert facts["charge"] is None
    assert "1 released nothing for it (budget_exceeded)" in facts["words"]
    assert "too sure of itself" in facts["words"]
    write_calibration(tmp_path, facts)
    written = json.loads((tmp_path / "calibration.json").read_text())
    assert written == {
        "schema": "fedimaging-calibration/1", "kind": "temperature", "temperature": found["value"], "bias": 0.0,
        "fitted_on": {"patients": "validation", "hospitals": ["north", "odd", "south"]}, "charge": None,
    }


def test_what_noise_costs_stands_beside_each_hospital(tiny_study: MakeStudy) -> None:
    facts = tempering_facts(tiny_study("privacy.delta=0.0001"), [released("north", 1.0, 4.0 * SENSITIVITY)], {})
    charge = facts["charge"]["sites"]["north"]
    assert charge["noise_multiplier"] == pytest.approx(4.0)
    assert charge["epsilon"] == pytest.approx(epsilon([Charge(4.0, 1.0, 1, "patient")], 1e-4), rel=0.01)
    assert facts["charge"]["delta"] == 1e-4


def test_where_nothing_is_known_no_file_stays(tiny_study: MakeStudy, tmp_path: Path) -> None:
    write_calibration(tmp_path, tempering_facts(tiny_study(), [released("north", 1.0)], {}))
    lost = tempering_facts(tiny_study(), [released("north", 1.0, 400.0, patients=30)], {})
    assert lost["temperature"] == {"value": None, "low": None, "high": None}
    assert "leave its temperature unknown" in lost["words"]
    write_calibration(tmp_path, lost)
    assert not (tmp_path / "calibration.json").exists()
    assert "no hospital released" in tempering_facts(tiny_study(), [], {"north": "calibration_not_released"})["words"]


def run(study: Study, out: Path) -> dict:
    with LiveView(1, quiet=True) as view:
        tree: dict = json.loads(simulate(study, out, Options(report=False, workers=1), view).read_text())
    return tree


def test_a_private_run_charges_every_training_hospital_and_no_held_out_one(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*ASKED, "privacy.engine=loop", "hospitals.held_out=[hospital_03]", "policy.calibration_noise_multiplier=2")
    report = run(study, tmp_path / "run")
    tempering = report["calibration"]["tempering"]
    assert set(tempering["charge"]["sites"]) == set(tempering["sites"]) == {"hospital_01", "hospital_02"}
    for name in ("hospital_01", "hospital_02"):
        assert Ledger(tmp_path / "run" / "sites" / name / "ledger.sqlite").charges()[-1] == Charge(2.0, 1.0, 1, "patient")
        spent = report["sites"][name]["privacy"]
        assert (spent["calibrations"], spent["epsilon"] <= spent["budget_epsilon"]) == (1, True)
    assert not (tmp_path / "run" / "sites" / "hospital_03" / "ledger.sqlite").exists()


def test_a_run_whose_budget_is_used_up_goes_on_uncalibrated_and_says_so(
    tiny_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = tiny_study(*ASKED, "privacy.engine=loop", "privacy.target_epsilon=8", "policy.budget_epsilon=8.01")
    report = run(study, tmp_path / "run")
    tempering = report["calibration"]["tempering"]
    assert set(tempering["refused"].values()) == {"budget_exceeded"}
    assert "not calibrated" in tempering["words"]
    assert report["test"]["auroc"]["value"] is not None
    assert report["calibration"]["after"] is None
    assert not (tmp_path / "run" / "calibration.json").exists()
    assert "evaluate.calibrate" in caplog.text


def test_training_patients_are_no_substitute(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(ASKED[0], "data.split={test: 0.3, validation: 0.0, seed: 0}")
    with pytest.raises(StudyError, match=r"no hospital has one; set data\.split\.validation"):
        run(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_segmentation_is_not_tempered() -> None:
    with pytest.raises(StudyError, match="tempers a classifier"):
        parse({
            "name": "x", "data": {"source": "phantoms", "image_size": [16, 16], "phantoms": {"patients": 30, "hospitals": 3}},
            "task": {"kind": "segmentation"}, "hospitals": {"by": "column"}, "model": {"name": "basic_unet"},
            "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 4, "local_steps": 1}, "privacy": None,
            "federation": {}, "evaluation": {"calibration": "temperature"},
        }, "x")  # fmt: skip


def test_exact_sums_of_a_private_run_are_named_among_what_is_not_protected(tiny_study: MakeStudy, tmp_path: Path) -> None:
    report = run(tiny_study(*ASKED, "privacy.engine=loop", "policy.release_calibration=exact"), tmp_path / "run")
    assert [text for text in report["privacy"]["not_protected"] if text.startswith("Validation patients")]
    assert report["calibration"]["tempering"]["charge"] is None
