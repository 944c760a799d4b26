import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedimaging.cli import app
from fedimaging.errors import StudyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.ceilings import tpr_ceiling
from fedimaging.privacy.group import group_epsilon
from fedimaging.runs import hospitals
from fedimaging.runs.calibrate import Calibration, HospitalCalibration, as_lines, calibrate_study
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]

ROW = HospitalCalibration(
    hospital="hospital_01", patients=500, units=2000, sample_rate=0.016, steps=3150, noise_multiplier=1.0, epsilon=5.578,
    epsilon_rdp=6.091, delta=1e-5, noise_to_signal=3.125, tpr_at_0_1_percent=0.02868, tpr_at_1_percent=0.125,
    scans_per_patient=4, patient_epsilon=31.56,
)  # fmt: skip


def test_what_is_printed_is_what_the_run_would_do_and_spend(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study()
    found = calibrate_study(study)
    plans = hospitals.make_federation(study, hospitals.load_data(study), tmp_path, "cpu").plans
    assert [row.hospital for row in found.hospitals] == list(plans)
    for row in found.hospitals:
        plan = plans[row.hospital]
        charge = Charge(row.noise_multiplier, row.sample_rate, row.steps, "patient")
        assert charge == plan.charge(plan.steps_per_round * plan.rounds)
        assert row.patients == row.units == plan.n_units
        assert row.epsilon == epsilon([charge], row.delta) <= 8.0 < row.epsilon_rdp
        assert row.tpr_at_1_percent == tpr_ceiling([charge], 0.01) > row.tpr_at_0_1_percent > 0.001
        expected = row.sample_rate * row.units
        assert row.noise_to_signal == pytest.approx(row.noise_multiplier * math.sqrt(found.trainable_parameters) / expected)
    assert not list(tmp_path.iterdir())


def test_a_record_level_study_is_read_for_patients_too(tiny_study: MakeStudy) -> None:
    found = calibrate_study(tiny_study("privacy.unit=record", "data.phantoms.scans_per_patient=[2,2]"))
    for row in found.hospitals:
        assert (row.units, row.scans_per_patient) == (2 * row.patients, 2)
        assert row.patient_epsilon == group_epsilon(row.noise_multiplier, row.sample_rate, row.steps, 2, row.delta)
        assert row.patient_epsilon > row.epsilon


def test_noised_evaluations_are_part_of_what_is_calibrated(tiny_study: MakeStudy) -> None:
    plain, noised = (calibrate_study(tiny_study(f"policy.release_evaluation={mode}")) for mode in ("scores", "noised"))
    for one, other in zip(plain.hospitals, noised.hospitals, strict=True):
        assert (one.evaluations, other.evaluations) == (0, 2)
        assert other.epsilon == epsilon([Charge(one.noise_multiplier, one.sample_rate, one.steps, "patient"),
                                         Charge(4.0, 1.0, 2, "patient")], one.delta) > one.epsilon  # fmt: skip
    assert "and 2 noised evaluations" in "\n".join(as_lines(noised))
    assert "evaluations" not in "\n".join(as_lines(plain))


def test_a_study_without_privacy_has_nothing_to_calibrate(tiny_study: MakeStudy) -> None:
    with pytest.raises(StudyError, match="privacy=None leaves nothing to calibrate"):
        calibrate_study(tiny_study("privacy=null"))


def test_the_table_rounds_nothing_in_its_own_favour() -> None:
    records = Calibration("s", "record", "PLD", 1.0, "small_cnn", 23_538, (ROW,))
    lines = as_lines(records)
    assert lines[0] == "s: record-level DP, small_cnn with 23,538 trainable parameters, clip norm 1"
    cells = [cell.strip() for cell in lines[3].split("  ") if cell.strip()]
    assert cells[:8] == ["hospital_01", "500", "2000", "0.016", "3150", "1", "5.58", "6.10"]
    assert cells[8:] == ["31.56 (4)", "1×10⁻⁵", "3.12", "2.9 %", "12.5 %"]
    patients = Calibration("s", "patient", "PLD", 1.0, "small_cnn", 23_538, (replace(ROW, patient_epsilon=None),))
    assert "per patient" not in "\n".join(as_lines(patients))


def test_no_limit_is_null_in_json_and_a_sign_in_the_table() -> None:
    endless = Calibration("s", "record", "PLD", 1.0, "small_cnn", 10, (replace(ROW, patient_epsilon=math.inf),))
    assert endless.as_json()["hospitals"][0]["patient_epsilon"] is None
    assert "∞ (4)" in as_lines(endless)[3]


def test_the_command_prints_a_table_or_json(tiny_study: MakeStudy, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study().model_dump(mode="json")))
    table = CliRunner().invoke(app, ["calibrate", str(path), "-o", "federation.rounds=3"])
    assert table.exit_code == 0
    assert "hospital_03" in table.stdout
    told = CliRunner().invoke(app, ["calibrate", str(path), "-o", "federation.rounds=3", "--json"])
    tree = json.loads(told.stdout)
    assert (tree["unit"], len(tree["hospitals"])) == ("patient", 3)
    assert tree["hospitals"][0]["patient_epsilon"] is None
