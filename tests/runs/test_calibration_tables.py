"""Calibration of a run's test patients by hospital and group: a planted miscalibrated hospital is found, and no other."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedimaging.data.dataset import Dataset
from fedimaging.results import Arrays, SiteEvaluation
from fedimaging.runs.calibration_tables import calibration_block, calibration_tables, holm
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
HOSPITALS = ("east", "north", "odd", "south", "west")
PATIENTS = 150


def evaluations(seed: int, *, temperature: float = 1.0, shift: float = 0.0, patients: int = PATIENTS) -> list[SiteEvaluation]:
    """Test patients of five hospitals; at `odd` log-odds are times `temperature`, or outcomes are more frequent by `shift`."""
    draw, found = np.random.default_rng(seed), []
    for site in HOSPITALS:
        odds = draw.normal(0, 2, patients)
        moved = shift if site == "odd" else 0.0
        labels = (draw.random(patients) < 1 / (1 + np.exp(-odds - moved))).astype(np.int64)
        score = 1 / (1 + np.exp(-odds * (temperature if site == "odd" else 1.0)))
        scores = np.stack([1 - score, score], axis=1).astype(np.float32)
        arrays: Arrays = {"scores": scores, "labels": labels, "patient": np.arange(patients)}
        found.append(SiteEvaluation(site, 1, 0.0, patients, {}, arrays, "scores"))
    return found


def tables(study: Study, found: Sequence[SiteEvaluation], temperature: float | None = None) -> dict[str, Any]:
    """Without groups, so that no data are needed."""
    return calibration_tables(study, cast(Dataset, None), cast(SimulatedFederation, None), found, temperature)


def alarms(found: dict[str, Any]) -> set[str]:
    return {site for site, table in found["before"]["sites"].items() if table["p_adjusted"] < 0.05}


def test_a_hospital_whose_scores_are_too_sure_is_found_with_its_size(tiny_study: MakeStudy) -> None:
    found = tables(tiny_study(), evaluations(0, temperature=2.5))
    assert alarms(found) == {"odd"}
    odd = found["before"]["sites"]["odd"]
    assert odd["slope"]["low"] < 1 / 2.5 < odd["slope"]["high"] < 0.7
    assert odd["ece"]["low"] > odd["ece_by_chance"] / 2
    assert odd["ece"]["value"] > 1.5 * odd["ece_by_chance"]


def test_a_hospital_of_another_prevalence_is_found_with_its_size(tiny_study: MakeStudy) -> None:
    found = tables(tiny_study(), evaluations(0, shift=1.2))
    assert alarms(found) == {"odd"}
    odd = found["before"]["sites"]["odd"]["intercept"]
    assert 0.3 < odd["low"] < 1.2 < odd["high"]


def test_where_nothing_is_planted_hardly_any_run_has_an_alarm(tiny_study: MakeStudy) -> None:
    study = tiny_study()
    assert sum(bool(alarms(tables(study, evaluations(seed)))) for seed in range(20)) <= 4  # a run has one with chance 5 %


def test_a_temperature_mends_what_a_temperature_spoilt(tiny_study: MakeStudy) -> None:
    spoilt = [e for e in evaluations(3, temperature=2.5) if e.site == "odd"]
    found = tables(tiny_study(), spoilt, temperature=2.5)
    before, after = found["before"]["test"], found["after"]["test"]
    assert after["ece"]["value"] < before["ece"]["value"]
    assert after["brier"]["value"] < before["brier"]["value"]
    assert after["slope"]["value"] == pytest.approx(2.5 * before["slope"]["value"], rel=1e-3)
    assert before["p_value"] < 0.05 < after["p_value"]


def test_held_out_hospitals_stand_apart_and_small_ones_are_not_told(tiny_study: MakeStudy) -> None:
    few = evaluations(0, patients=9)
    study = tiny_study("hospitals.held_out=[odd]")
    found = tables(study, [*evaluations(0)[:3], few[3]])["before"]
    assert found["held_out"]["n_patients"] == PATIENTS
    assert found["test"]["n_patients"] == 2 * PATIENTS + 9
    assert found["sites"]["south"] is None  # 9 patients, below minimum_group
    assert set(found["sites"]) == {"east", "north", "odd", "south"}


def test_groups_are_told_apart(tiny_study: MakeStudy, tmp_path: Path) -> None:
    found = evaluations(1)
    count = len(found) * PATIENTS
    sex = np.array(["F", "M"])[np.arange(count) % 2]
    sex[:7], sex[7:30] = "X", ""  # seven of a rare group, and some of whom nothing is stated
    data = SimpleNamespace(columns={"sex": sex}, patient_ids=np.arange(count).astype(str))
    sites = SimpleNamespace(names=HOSPITALS, test_site=np.repeat(np.arange(len(HOSPITALS)), PATIENTS))
    block = calibration_block(
        tiny_study("evaluation.groups=[sex]"), cast(Dataset, data), cast(SimulatedFederation, sites), found, None)
    groups = block["before"]["groups"]["sex"]
    assert {name: table["n_patients"] for name, table in groups.items()} == {"F": 360, "M": 360}
    assert (block["kind"], block["tempering"], block["after"]) == ("binary", None, None)


def test_without_scores_there_is_nothing_to_tell(tiny_study: MakeStudy) -> None:
    bare = SiteEvaluation("north", 1, 0.0, 10, {"auroc": 0.5})
    assert tables(tiny_study(), [bare]) == {"before": None, "after": None}
    broken = evaluations(0)[0]
    broken.predictions["scores"][3] = np.nan
    assert tables(tiny_study(), [broken]) == {"before": None, "after": None}


def test_adjusted_p_values_are_holms() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({}) == {}
