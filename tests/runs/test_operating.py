"""The operating point comes from validation patients, and from nobody else."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from fedimaging.errors import StudyError
from fedimaging.privacy.released_metrics import EDGES, ranking_totals
from fedimaging.results import SiteEvaluation
from fedimaging.runs.operating import decision_curves, operating_point
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
ASKED = "evaluation.operating_point={sensitivity: 0.9}"


def scans(n: int, seed: int, shift: float = 2.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.4).astype(np.int64)
    scores = 1 / (1 + np.exp(-(rng.normal(size=n) + shift * truth - 1.0)))
    return {"scores": np.stack([1 - scores, scores], 1), "labels": truth, "patient": np.arange(n)}


def totals(arrays: dict[str, np.ndarray], std: float = 0.5) -> dict[str, np.ndarray]:
    cells = ranking_totals(arrays["scores"], arrays["labels"], arrays["patient"], "binary").arrays["cells"]
    return {"cells": cells.astype(np.float32), "noise_std": np.array(std, np.float32)}


def scored(site: str, seed: int, validation: dict[str, np.ndarray] | None = None) -> SiteEvaluation:
    chosen_on = scans(200, seed + 50) if validation is None else validation
    return SiteEvaluation(site, 1, 0.0, 300, {}, scans(300, seed), "scores", validation=chosen_on)


def test_the_threshold_keeps_its_aim_on_validation_patients_and_is_judged_on_test_patients(tiny_study: MakeStudy) -> None:
    study = tiny_study(ASKED, "hospitals.held_out=[hospital_03]")
    sites = [scored("hospital_01", 1), scored("hospital_02", 2), scored("hospital_03", 3, {})]
    point = operating_point(study, sites)
    assert point is not None
    assert (point["aim"], point["target"], point["from"], point["why"]) == ("sensitivity", 0.9, "scores", None)
    both = [site.validation for site in sites[:2]]
    positive = np.concatenate([one["scores"][one["labels"] == 1, 1] for one in both])
    assert point["validation"]["sensitivity"]["value"] == (positive >= point["threshold"]).mean() >= 0.9
    assert (np.sort(positive)[::-1] > point["threshold"]).sum() - 1 < 0.9 * len(positive)  # and no higher than it must be
    inside = np.concatenate([one.predictions["scores"][one.predictions["labels"] == 1, 1] for one in sites[:2]])
    assert point["test"]["sensitivity"]["value"] == pytest.approx((inside >= point["threshold"]).mean())
    assert point["test"]["sensitivity"]["low"] < point["test"]["sensitivity"]["value"] < point["test"]["sensitivity"]["high"]
    assert set(point["hospitals"]) == {"hospital_01", "hospital_02", "hospital_03"}
    assert point["held_out"] == point["hospitals"]["hospital_03"]


def test_test_patients_and_held_out_hospitals_have_no_part_in_the_threshold(tiny_study: MakeStudy) -> None:
    study = tiny_study(ASKED, "hospitals.held_out=[hospital_03]")
    one = operating_point(study, [scored("hospital_01", 1), scored("hospital_03", 3)])
    other = SiteEvaluation("hospital_01", 1, 0.0, 90, {}, scans(90, 77, shift=0.0), "scores", validation=scans(200, 51))
    two = operating_point(study, [other, scored("hospital_03", 8)])
    assert one is not None
    assert two is not None
    assert one["threshold"] == two["threshold"]


def test_from_noised_totals_the_threshold_is_a_public_border(tiny_study: MakeStudy) -> None:
    study = tiny_study(ASKED)
    sites = [
        SiteEvaluation(f"hospital_0{k}", 1, math.nan, 0, {}, release="noised", totals=totals(scans(400, k)),
                       validation=totals(scans(400, k + 9)))
        for k in (1, 2)
    ]  # fmt: skip
    point = operating_point(study, sites)
    assert point is not None
    assert point["from"] == "totals"
    assert point["threshold"] in EDGES.tolist()
    assert point["validation"]["sensitivity"]["value"] >= 0.9
    assert 0.8 < point["test"]["sensitivity"]["value"] < 1.0
    curve = decision_curves(study, sites)
    assert curve is not None
    assert curve["thresholds"] == EDGES.tolist()


@pytest.mark.parametrize(("sites", "why"), [
    ([scored("hospital_01", 1, {})], "no hospital released anything of validation patients"),
    ([SiteEvaluation("hospital_01", 1, 0.5, 30, {"auroc": 0.8})], "metrics alone left"),
    ([scored("hospital_01", 1, {**scans(50, 1), "labels": np.zeros(50, np.int64)})], "do not show both answers"),
])  # fmt: skip
def test_without_validation_patients_there_is_no_threshold_and_the_report_says_so(
    sites: list[SiteEvaluation], why: str, tiny_study: MakeStudy
) -> None:
    point = operating_point(tiny_study(ASKED), sites)
    assert point is not None
    assert point["threshold"] is None
    assert why in point["why"]
    assert "test" not in point


def test_nothing_is_chosen_unless_it_is_asked_for(tiny_study: MakeStudy) -> None:
    assert operating_point(tiny_study(), [scored("hospital_01", 1)]) is None
    for wrong in ("{sensitivity: 0.9, specificity: 0.9}", "{}", "{sensitivity: 90}"):
        with pytest.raises(StudyError, match="operating_point"):
            tiny_study(f"evaluation.operating_point={wrong}")


def test_the_decision_curve_is_of_training_hospitals_and_needs_both_answers(tiny_study: MakeStudy) -> None:
    study = tiny_study("hospitals.held_out=[hospital_03]")
    curve = decision_curves(study, [scored("hospital_01", 1), scored("hospital_03", 3)])
    alone = decision_curves(study, [scored("hospital_01", 1)])
    assert curve == alone
    assert curve is not None
    assert max(one["value"] for one in curve["model"]) > max(curve["treat_all"][len(curve["treat_all"]) // 2], 0)
    only = {**scans(30, 1), "labels": np.ones(30, np.int64)}
    assert decision_curves(study, [SiteEvaluation("hospital_01", 1, 0.0, 30, {}, only, "scores")]) is None
