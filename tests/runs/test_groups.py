"""Results by groups of test patients, in a simulation."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedimaging.data.dataset import Dataset
from fedimaging.errors import DataError, StudyError
from fedimaging.results import SiteEvaluation
from fedimaging.runs import groups, hospitals
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.report import write_page
from fedimaging.runs.simulate import simulate
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
PLAIN = ("privacy=null", "data.phantoms.patients=160")


def _evaluations(dataset: Dataset, federation: SimulatedFederation, scores: np.ndarray) -> list[SiteEvaluation]:
    """What hospitals would send that scored each scan so, (N,) for class 1."""
    found = []
    for site in federation.test_names:
        rows = np.flatnonzero(federation.test_site == federation.names.index(site))
        _, patient = np.unique(dataset.patient_ids[rows], return_inverse=True)
        arrays = {"patient": patient, "scores": np.stack([1 - scores[rows], scores[rows]], 1), "labels": dataset.labels[rows]}
        found.append(SiteEvaluation(site, 1, 0.0, int(patient.max()) + 1, {}, arrays, "scores"))
    return found


def _tables(study: Study, tmp_path: Path, score: Callable[[Dataset], np.ndarray]) -> tuple[dict, Dataset, SimulatedFederation]:
    dataset = hospitals.load_data(study)
    federation = hospitals.make_federation(study, dataset, tmp_path, "cpu")
    found = groups.simulated_groups(study, dataset, federation)
    tables = groups.group_tables(study, _evaluations(dataset, federation, score(dataset)), found, groups.least_shown(study))
    return tables, dataset, federation


def test_a_model_that_fails_one_sex_is_found_out(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*PLAIN, "evaluation.groups=[sex]", "evaluation.minimum_group=2")

    def right_for_women_only(dataset: Dataset) -> np.ndarray:
        assert dataset.labels is not None
        random = np.random.default_rng(0).random(len(dataset))
        return np.where(dataset.columns["sex"] == "F", dataset.labels, random)

    tables, _, _ = _tables(study, tmp_path, right_for_women_only)
    sex, gap = tables["groups"]["sex"], tables["group_gaps"]["sex"]
    assert sex["F"]["auroc"]["value"] == 1.0
    assert sex["M"]["auroc"]["value"] < 0.8
    assert (gap["best"], gap["worst"], gap["metric"]) == ("F", "M", "auroc")
    assert gap["value"] == pytest.approx(1.0 - sex["M"]["auroc"]["value"])
    assert gap["low"] > 0
    assert gap["p_value"] < 0.05


def test_groups_are_of_the_training_hospitals_test_patients_each_counted_once(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*PLAIN, "evaluation.groups=[sex,age]", "hospitals.held_out=[hospital_03]", "evaluation.minimum_group=2")
    tables, dataset, federation = _tables(study, tmp_path, lambda data: np.zeros(len(data)))
    inside = np.isin(federation.test_site, [federation.names.index(n) for n in ("hospital_01", "hospital_02")])
    for column in ("sex", "age"):
        counted = {v: t.get("n_patients", t.get("auroc", {}).get("n_patients")) for v, t in tables["groups"][column].items()}
        assert sum(counted.values()) == len(np.unique(dataset.patient_ids[inside]))
    women = np.unique(dataset.patient_ids[inside & (dataset.columns["sex"] == "F")])
    assert tables["groups"]["sex"]["F"]["auroc"]["n_patients"] == len(women)


def test_small_groups_are_counted_together_without_a_figure(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*PLAIN, "evaluation.groups=[sex]", "evaluation.minimum_group=1000")
    tables, dataset, federation = _tables(study, tmp_path, lambda data: np.zeros(len(data)))
    patients = len(np.unique(dataset.patient_ids[federation.test_site >= 0]))
    assert tables == {"groups": {"sex": {"too few": {"groups": 2, "n_patients": patients}}}, "group_gaps": {"sex": None}}


def _relabelled(dataset: Dataset, **columns: list[str]) -> Dataset:
    picked = dataset.select(np.arange(len(next(iter(columns.values())))))
    return replace(picked, columns={name: np.array(values) for name, values in columns.items()})


def test_ages_fall_into_bands_whose_lower_edge_belongs_to_them(tiny_study: MakeStudy) -> None:
    study = tiny_study(*PLAIN, "evaluation.groups=[age]", "evaluation.age_bands=[18,65]")
    dataset = replace(
        _relabelled(hospitals.load_data(study), age=["17.9", "18", "64", "65", " 80 ", ""]),
        patient_ids=np.array(["a", "b", "c", "d", "e", "f"]),
    )
    assert groups.groups_of(study.evaluation, dataset, "age").tolist() == [
        "under 18", "18 to under 65", "18 to under 65", "65 and over", "65 and over", "not stated",
    ]


def test_a_patient_has_one_group_that_of_the_first_scan_that_states_one(tiny_study: MakeStudy) -> None:
    study = tiny_study(*PLAIN, "evaluation.groups=[scanner]")
    dataset = replace(
        _relabelled(hospitals.load_data(study), scanner=["", "A", "B", "C"]), patient_ids=np.array(["p", "p", "p", "q"])
    )
    assert groups.groups_of(study.evaluation, dataset, "scanner").tolist() == ["A", "A", "A", "C"]


@pytest.mark.parametrize(("overrides", "error", "words"), [
    (("evaluation.groups=[sexx]",), DataError, "evaluation.groups='sexx' is not known; did you mean 'sex'"),
    (("evaluation.groups=[sex]", "policy.release_evaluation=metrics"), StudyError, "needs scores or release_groups"),
    (("evaluation.groups=[sex,sex]",), StudyError, "has a column twice"),
    (("evaluation.groups=[age]", "evaluation.age_bands=[60,40]"), StudyError, "edges that rise"),
])
def test_what_cannot_be_grouped_is_one_clear_error(
    overrides: tuple[str, ...], error: type[Exception], words: str, tiny_study: MakeStudy, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words), LiveView(2, quiet=True) as view:
        simulate(tiny_study(*PLAIN, *overrides), tmp_path / "run", Options(report=False, workers=1), view)
    assert not (tmp_path / "run").exists()


def test_an_age_that_is_no_number_is_told(tiny_study: MakeStudy) -> None:
    study = tiny_study(*PLAIN, "evaluation.groups=[age]")
    with pytest.raises(DataError, match="age='old' is no number"):
        groups.check_groups(study, _relabelled(hospitals.load_data(study), age=["12", "old"]))


def test_a_simulation_reports_groups_of_every_arm_and_shows_them(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*PLAIN, "evaluation.groups=[sex]", "evaluation.minimum_group=2")
    with LiveView(2, quiet=True) as view:
        path = simulate(study, tmp_path / "run", Options(report=False, workers=1, baselines=True), view)
    report = json.loads(path.read_text(encoding="utf-8"))
    for arm in (report, report["baselines"]["pooled"], report["baselines"]["local_only"]):
        patients = sum(table["auroc"]["n_patients"] for table in arm["groups"]["sex"].values())
        assert patients == report["test"]["auroc"]["n_patients"]
    page = write_page(tmp_path / "run").read_text(encoding="utf-8")
    assert "Groups of patients" in page
    assert "permutation test" in page


def test_noised_groups_are_charged_once_at_each_hospital_and_the_plan_knew_it(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(
        "policy.release_evaluation=noised", "policy.release_groups=noised", "policy.evaluation_noise_multiplier=0.5",
        "evaluation.groups=[sex,sex+age]", "evaluation.minimum_group=2", "evaluation.operating_point={sensitivity: 0.8}",
        "data.split={test: 0.4, validation: 0.2}", "data.phantoms.patients=400", "privacy.engine=vmap",
    )  # fmt: skip
    with LiveView(2, quiet=True) as view:
        path = simulate(study, tmp_path / "run", Options(report=False, workers=1), view)
    report = json.loads(path.read_text())
    assert set(report["groups"]) == {"sex", "sex+age"}
    assert report["group_gaps"]["sex"]["p_value"] is None
    assert report["operating_point"]["from"] == "totals"
    for site in report["sites"].values():  # two rounds of training, two evaluations, validation patients, groups
        assert site["privacy"]["evaluations"] == 4
        assert site["privacy"]["epsilon"] <= site["privacy"]["budget_epsilon"]
    last = report["rounds"][-1]
    for name, planned in last["epsilon"].items():
        assert report["sites"][name]["privacy"]["epsilon"] <= planned * 1.01
    page = write_page(tmp_path / "run").read_text(encoding="utf-8")
    assert "Each hospital released counts of every group with noise" in page


def test_the_minimum_of_the_policy_holds_beside_that_of_the_study(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*PLAIN, "evaluation.groups=[sex]", "evaluation.minimum_group=2", "policy.minimum_group=1000")
    tables, _, _ = _tables(study, tmp_path, lambda data: np.zeros(len(data)))
    assert set(tables["groups"]["sex"]) == {"too few"}


def test_groups_of_several_columns_are_sorted_by_each(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*PLAIN, "data.split.test=0.6", "evaluation.groups=[sex+age]", "evaluation.age_bands=[55,65]",
                       "evaluation.minimum_group=2")  # fmt: skip
    tables, _, _ = _tables(study, tmp_path, lambda data: np.arange(len(data)))
    assert list(tables["groups"]["sex+age"])[:4] == ["F, under 55", "F, 55 to under 65", "F, 65 and over", "M, under 55"]
