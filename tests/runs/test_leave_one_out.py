"""Leave-one-hospital-out: who trains and tests, what is compared with what, and that a kill loses nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedimaging.errors import StudyError
from fedimaging.privacy.ledger import Ledger
from fedimaging.results import SiteEvaluation
from fedimaging.runs import hospitals
from fedimaging.runs.leave_one_out import LeftOut, leave_one_out, worst_external
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
SMALL = ("privacy=null", "data.phantoms.patients=90", "federation.rounds=1", "evaluation.every=0")


def _run(study: Study, out: Path, **options: Any) -> dict[str, Any]:
    with LiveView(study.federation.rounds, quiet=True) as view:
        path = simulate(study, out, Options(**{"report": False, "workers": 1, "leave_one_out": True, **options}), view)
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def _scored(site: str, labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> SiteEvaluation:
    _, codes = np.unique(patients, return_inverse=True)
    arrays = {"patient": codes, "scores": np.stack([1 - scores, scores], 1), "labels": labels}
    return SiteEvaluation(site, 1, 0.0, int(codes.max()) + 1, {}, arrays, "scores")


def test_the_hospital_left_out_only_tests_with_all_its_patients(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*SMALL, "data.split.validation=0.2")
    dataset = hospitals.load_data(study)
    whole = hospitals.make_federation(study, dataset, tmp_path, "cpu")
    arm = hospitals.without(whole, dataset, "hospital_02")
    assert arm.train_names == ("hospital_01", "hospital_03")
    assert arm.test_names == ("hospital_02",)
    mine = dataset.columns["site"] == "hospital_02"
    assert np.array_equal(arm.test_site == 1, mine)
    assert np.array_equal(arm.train_site >= 0, (whole.train_site >= 0) & ~mine)
    assert arm.folder != whole.folder
    steered = hospitals.make_federation(
        tiny_study(*SMALL, "data.split.validation=0.2", "evaluation.every=1",
                   "federation.fairness={kind: q_fair, q: 1.0}"), dataset, tmp_path, "cpu")
    assert hospitals.without(steered, dataset, "hospital_02").test_names == whole.test_names  # their evaluations steer


def test_the_difference_is_over_the_same_test_patients_of_both_models(tiny_study: MakeStudy, tmp_path: Path) -> None:
    """The model that never saw the hospital is right about the hospital's training patients and wrong about its test ones."""
    study = tiny_study(*SMALL, "evaluation.resamples=200")
    dataset = hospitals.load_data(study)
    whole = hospitals.make_federation(study, dataset, tmp_path, "cpu")
    assert dataset.labels is not None
    labels = dataset.labels.astype(float)
    arms, main = [], []
    for name in whole.train_names:
        arm = hospitals.without(whole, dataset, name)
        place = whole.names.index(name)
        rows, tested = np.flatnonzero(arm.test_site == place), np.flatnonzero(whole.test_site == place)
        outside = np.where(whole.test_site[rows] == place, 1 - labels[rows], labels[rows])
        arms.append(LeftOut(name, arm, [_scored(name, dataset.labels[rows], outside, dataset.patient_ids[rows])],
                            {"training": 2.0, "evaluation": 0.5}))  # fmt: skip
        main.append(_scored(name, dataset.labels[tested], labels[tested], dataset.patient_ids[tested]))
    found = leave_one_out(study, "auroc", whole, main, arms)
    row = found["hospitals"]["hospital_01"]
    assert row["internal"]["value"] == 1.0
    assert row["external_same"]["value"] == 0.0
    assert (row["difference"]["value"], row["difference"]["low"], row["difference"]["high"]) == (1.0, 1.0, 1.0)
    assert 0.3 < row["external"]["value"] < 1.0  # all its patients: most of them trained with in the main run
    assert row["external"]["n_patients"] > row["external_same"]["n_patients"] == row["internal"]["n_patients"]
    assert found["mean"]["difference"]["value"] == 1.0
    defined = [row for row in found["hospitals"].values() if row["difference"]["value"] is not None]
    assert found["mean"]["hospitals"] == len(defined) == 2  # the third tests on one class only
    assert found["cost"][0] == {"hospital": "hospital_01", "training": 2.0, "evaluation": 0.5}
    worst = worst_external(found, lower_is_better=False)
    assert worst is not None
    assert worst[1].value == min(row["external"]["value"] for row in found["hospitals"].values())


def test_a_run_trains_a_federation_without_each_hospital_and_goes_on_where_it_was(
    tiny_study: MakeStudy, tmp_path: Path
) -> None:
    study = tiny_study(*SMALL, "hospitals.held_out=[hospital_03]")
    first = _run(study, tmp_path / "run", leave_one_out=False)
    assert first["leave_one_out"] is None
    report = _run(study, tmp_path / "run", resume=True)  # finished, but more is asked
    assert set(report["leave_one_out"]["hospitals"]) == {"hospital_01", "hospital_02"}
    assert report["test"] == first["test"]
    whole = _run(study, tmp_path / "whole")
    assert report["leave_one_out"]["hospitals"] == whole["leave_one_out"]["hospitals"]
    dataset = hospitals.load_data(study)
    mine = np.unique(dataset.patient_ids[dataset.columns["site"] == "hospital_01"])
    assert report["leave_one_out"]["hospitals"]["hospital_01"]["external"]["n_patients"] == len(mine)
    assert report["held_out_gap"]["value"] == pytest.approx(
        report["test"]["auroc"]["value"] - report["held_out"]["auroc"]["value"])  # fmt: skip


def test_each_federation_has_ledgers_of_its_own_and_no_scores_means_no_difference(
    tiny_study: MakeStudy, tmp_path: Path
) -> None:
    study = tiny_study("privacy.engine=loop", "federation.rounds=1", "policy.release_evaluation=noised")
    report = _run(study, tmp_path / "run")
    ledger = tmp_path / "run" / "leave_one_out" / "hospital_02" / "sites" / "hospital_01" / "ledger.sqlite"
    assert len(Ledger(ledger).charges()) == 1  # it trained; only hospital_02 was asked to evaluate
    row = report["leave_one_out"]["hospitals"]["hospital_02"]
    assert row["difference"] is None
    assert row["external"]["n_patients"] >= 0
    assert report["leave_one_out"]["mean"] is None


def test_one_training_hospital_cannot_be_left_out(tiny_study: MakeStudy, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="at least two training hospitals"):
        _run(tiny_study(*SMALL, "hospitals.held_out=[hospital_02,hospital_03]"), tmp_path / "run")
