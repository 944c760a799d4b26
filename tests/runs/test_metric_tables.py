import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from fedimaging.results import SiteEvaluation
from fedimaging.runs.live import LiveView
from fedimaging.runs.metric_tables import metric_table, release_words
from fedimaging.runs.options import Options
from fedimaging.runs.report import write_page
from fedimaging.runs.simulate import simulate
from fedimaging.site.policy import SitePolicy
from fedimaging.spec import EvaluationRelease
from fedimaging.study.schema import SimulatedHospitals, Study

MakeStudy = Callable[..., Study]


def totals(cells: np.ndarray) -> dict[str, np.ndarray]:
    return {"cells": cells.astype(np.float32), "noise_std": np.array(1.0, np.float32)}


def test_metrics_without_scores_are_weighted_by_patients(tiny_study: MakeStudy) -> None:
    found = metric_table(tiny_study(), [
        SiteEvaluation("a", 1, 0.5, 10, {"auroc": 0.9}), SiteEvaluation("b", 1, 0.5, 30, {"auroc": 0.7}),
        SiteEvaluation("c", 1, 0.5, 60, {"auroc": math.nan}),
    ])  # fmt: skip
    assert found == {"auroc": {"value": pytest.approx(0.75), "low": None, "high": None, "n_patients": 40}}
    assert metric_table(tiny_study(), []) == {}


def test_noised_totals_are_added_up(tiny_study: MakeStudy) -> None:
    cells = np.zeros((1, 2, 16))
    cells[0, 0, 2], cells[0, 1, 12] = 50, 50
    noised = [SiteEvaluation(name, 1, math.nan, 0, {}, release="noised", totals=totals(cells)) for name in "ab"]
    found = metric_table(tiny_study(), noised)
    assert found["auroc"]["value"] == pytest.approx(1.0)
    assert found["auroc"]["n_patients"] == 200


def test_totals_that_no_hospital_can_have_are_left_out(tiny_study: MakeStudy) -> None:
    cells = np.zeros((1, 2, 16))
    cells[0, 0, 2], cells[0, 1, 12] = 50, 50
    honest = SiteEvaluation("a", 1, math.nan, 0, {}, release="noised", totals=totals(cells))
    lies = [
        totals(np.zeros((1, 2, 7))), totals(cells * np.nan), totals(cells) | {"noise_std": np.array(-1.0, np.float32)},
        totals(cells) | {"more": np.zeros(3, np.float32)}, {"cells": cells.astype(np.float32)},
        totals(cells) | {"cells": cells.astype("U3")},
    ]  # fmt: skip
    found = [SiteEvaluation("b", 1, math.nan, 0, {}, release="noised", totals=lie) for lie in lies]
    assert metric_table(tiny_study(), [honest, *found]) == metric_table(tiny_study(), [honest])
    assert metric_table(tiny_study(), found) == {}


def test_every_mode_is_told_in_words() -> None:
    words = {mode: release_words(SimulatedHospitals(release_evaluation=mode)) for mode in get_args(EvaluationRelease)}
    assert len(set(words.values())) == len(words)
    assert "not differential privacy" in words["coarsened"]
    assert f"{SitePolicy().evaluation_step:g}" in words["coarsened"]
    assert "noise multiplier 4 " in words["noised"]


def test_a_run_with_noised_evaluations_charges_shows_and_survives_a_second_look(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(
        "policy.release_evaluation=noised", "policy.evaluation_noise_multiplier=0.4", "privacy.engine=vmap",
        "federation.rounds=3", "data.phantoms.patients=150", "evaluation.every=2",
    )
    with LiveView(3, quiet=True) as view:
        path = simulate(study, tmp_path / "run", Options(report=False, workers=1), view)
        first = json.loads(path.read_text())
        path.unlink()  # killed just before its end: the last evaluation is asked for again
        again = json.loads(simulate(study, tmp_path / "run", Options(report=False, workers=1, resume=True), view).read_text())
    assert first["sites"] == again["sites"]
    assert first["test"] == again["test"]
    assert first["test"]["auroc"]["low"] < first["test"]["auroc"]["value"] < first["test"]["auroc"]["high"]
    for site in first["sites"].values():
        spent = site["privacy"]
        assert spent["evaluations"] == 2  # after rounds 2 and 3
        assert 8.0 < spent["epsilon"] <= spent["budget_epsilon"]
    planned = {name: value for row in first["rounds"] for name, value in row["epsilon"].items()}
    for name, site in first["sites"].items():
        assert planned[name] == pytest.approx(site["privacy"]["epsilon"], abs=0.02)
        assert planned[name] >= site["privacy"]["epsilon"] - 1e-9
    page = write_page(tmp_path / "run").read_text()
    assert "counts with Gaussian noise left each hospital" in page
    assert "and 2 noised evaluations" in page


def test_baselines_can_pay_for_every_model_at_every_hospital(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(
        "policy.release_evaluation=noised", "policy.evaluation_noise_multiplier=0.4", "privacy.engine=vmap",
        "federation.rounds=1", "hospitals.held_out=[hospital_03]",
    )  # fmt: skip
    with LiveView(1, quiet=True) as view:
        path = simulate(study, tmp_path / "run", Options(report=False, workers=1, baselines=True), view)
    alone = json.loads(path.read_text())["baselines"]["local_only"]
    assert alone["refused"] == {}
    assert {name: set(row) for name, row in alone["matrix"].items()} == {
        name: {"hospital_01", "hospital_02", "hospital_03"} for name in ("hospital_01", "hospital_02")
    }


def test_evaluations_that_a_study_asks_for(tiny_study: MakeStudy) -> None:
    def asked(rounds: int, every: int) -> list[int]:
        study = tiny_study(f"federation.rounds={rounds}", f"evaluation.every={every}")
        return [study.evaluations_by(round) for round in range(rounds + 1)]

    assert asked(4, 1) == [0, 1, 2, 3, 4]
    assert asked(5, 2) == [0, 0, 1, 1, 2, 3]
    assert asked(3, 0) == [0, 0, 0, 1]
