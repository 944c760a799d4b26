"""What a hospital releases of groups: groups that the study names, a bounded reach of one patient, no small cell."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedimaging.data.dataset import Dataset
from fedimaging.errors import DataError, StudyError
from fedimaging.privacy.released_metrics import group_totals, ranking_totals
from fedimaging.site.groups import NOT_STATED, groups_of, public_groups, released_metrics, released_totals
from fedimaging.study.schema import EvaluationSpec
from fedimaging.training.evaluate import Evaluated
from fedimaging.training.task_spec import TaskSpec
from fedimaging.training.tasks import make_task

SPEC = EvaluationSpec(groups=("sex", "age"), age_bands=(40.0, 70.0), group_values={"scanner": ("A", "B")})
BINARY = make_task(TaskSpec(kind="binary", label="lesion"))


def data(**columns: list[str]) -> Dataset:
    n = len(next(iter(columns.values())))
    ids = columns.pop("patient") if "patient" in columns else [f"p{i}" for i in range(n)]
    return Dataset(np.zeros((n, 1, 2, 2)), None, None, np.array(ids), np.full(n, "test"),
                   {name: np.array(values) for name, values in columns.items()}, None, "")  # fmt: skip


def found(labels: list[int], patient: list[int] | None = None) -> Evaluated:
    rng = np.random.default_rng(0)
    scores = rng.random(len(labels))
    arrays = {"scores": np.stack([1 - scores, scores], 1), "labels": np.array(labels),
              "patient": np.array(patient if patient is not None else range(len(labels)))}  # fmt: skip
    return Evaluated(0.0, len(np.unique(arrays["patient"])), {}, arrays)


def test_groups_follow_from_the_study_alone() -> None:
    assert public_groups(SPEC, "sex") == ("F", "M", NOT_STATED)
    assert public_groups(SPEC, "age") == ("under 40", "40 to under 70", "70 and over", NOT_STATED)
    assert public_groups(SPEC, "scanner+sex") == ("A, F", "A, M", "B, F", "B, M", NOT_STATED)
    with pytest.raises(StudyError, match=r"give evaluation.group_values: \{view:"):
        public_groups(SPEC, "view")


def test_columns_that_are_joined_say_all_or_nothing() -> None:
    dataset = data(sex=["F", "", "M"], age=["30", "50", "80"])
    assert groups_of(SPEC, dataset, "sex+age").tolist() == ["F, under 40", NOT_STATED, "M, 70 and over"]


def test_a_hospital_whose_manifest_says_nothing_usable_says_not_stated() -> None:
    dataset = data(age=["30", "old", ""])
    assert groups_of(SPEC, dataset, "age", strict=False).tolist() == ["under 40", NOT_STATED, NOT_STATED]
    assert groups_of(SPEC, dataset, "sex", strict=False).tolist() == [NOT_STATED] * 3
    with pytest.raises(DataError, match="'old' is no number"):
        groups_of(SPEC, dataset, "age")


def test_a_value_that_the_study_does_not_name_is_not_sent() -> None:
    dataset = data(sex=["F", "M", "X"], age=["30", "50", "80"])
    totals = released_totals(found([0, 1, 1]), BINARY, SPEC, lambda column: groups_of(SPEC, dataset, column))
    assert totals.arrays["by.sex"].shape == (3, 1, 2, 16)
    assert totals.arrays["by.sex"].sum((1, 2, 3)).tolist() == [1.0, 1.0, 1.0]  # X counts as not stated
    assert totals.arrays["by.age"].sum((1, 2, 3)).tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(("kind", "classes"), [("binary", 2), ("multiclass", 3)])
def test_one_patient_moves_all_columns_together_by_no_more_than_the_stated_sensitivity(kind: str, classes: int) -> None:
    """Patients with several scans, also where a column puts scans of one patient into different groups."""
    rng = np.random.default_rng(1)
    n = 60
    scores, patient = rng.dirichlet(np.ones(classes), n), rng.integers(0, 12, n)
    labels = rng.integers(0, classes, n)
    groups = {"a": rng.integers(0, 2, n), "b": patient % 3, "c": patient % 4}

    def totals(keep: np.ndarray) -> np.ndarray:
        masks = {column: [codes[keep] == code for code in np.unique(codes)] for column, codes in groups.items()}
        found = group_totals(lambda among: ranking_totals(scores[keep], labels[keep], patient[keep], kind, among), masks)
        assert found.sensitivity == pytest.approx(math.sqrt(3 * (1 if kind == "binary" else classes)))
        return np.concatenate([array.ravel() for array in found.arrays.values()])

    everybody = totals(np.ones(n, bool))
    moves = [np.linalg.norm(everybody - totals(patient != one)) for one in range(12)]
    bound = math.sqrt(3 * (1 if kind == "binary" else classes))
    assert max(moves) <= bound + 1e-9
    alone = totals(np.flatnonzero(np.isin(np.arange(n), np.unique(patient, return_index=True)[1])))  # one scan each
    assert np.linalg.norm(alone) > 0


def test_the_bound_is_reached_by_a_patient_with_one_scan() -> None:
    masks = {name: [np.array([True]), np.array([False])] for name in "abcd"}
    totals = group_totals(
        lambda keep: ranking_totals(np.array([[0.2, 0.8]]), np.array([1]), np.array([0]), "binary", keep), masks)
    vector = np.concatenate([array.ravel() for array in totals.arrays.values()])
    assert np.linalg.norm(vector) == pytest.approx(totals.sensitivity) == pytest.approx(2.0)


def test_exact_metrics_of_a_group_need_the_minimum_of_every_answer() -> None:
    labels = [0] * 10 + [1] * 10 + [0] * 15 + [1] * 4
    sex = ["F"] * 20 + ["M"] * 19
    dataset = data(sex=sex, age=["50"] * 39)
    released = released_metrics(found(labels), BINARY, SPEC, lambda column: groups_of(SPEC, dataset, column), 5)
    patients, auroc = released["by.sex"][0]
    assert patients == 20
    assert 0 <= auroc <= 1
    assert np.isnan(released["by.sex"][1]).all()  # 4 men with the finding
    assert released["by.age"][1][0] == 35  # 39, rounded down: what is missing cannot be told by subtraction
    assert np.isnan(released["by.age"][[0, 2, 3]]).all()


def test_scans_of_one_patient_are_one_patient() -> None:
    dataset = data(sex=["F"] * 12, age=["50"] * 12, patient=[f"p{i // 3}" for i in range(12)])
    given = found([0, 0, 0, 1, 1, 1] * 2, [i // 3 for i in range(12)])
    released = released_metrics(given, BINARY, SPEC, lambda column: groups_of(SPEC, dataset, column), 3)
    assert np.isnan(released["by.sex"]).all()  # two patients with each answer
    enough = released_metrics(given, BINARY, SPEC, lambda column: groups_of(SPEC, dataset, column), 2)
    assert enough["by.sex"][0][0] == 4


def test_a_hospital_without_test_patients_gives_zeros_of_the_same_shape() -> None:
    nobody = replace(found([]), arrays={})
    totals = released_totals(nobody, BINARY, SPEC, lambda column: np.zeros(0, str))
    assert totals.arrays["by.age"].shape == (4, 1, 2, 16)
    assert not totals.arrays["by.age"].any()
    assert np.isnan(released_metrics(nobody, BINARY, SPEC, lambda column: np.zeros(0, str), 2)["by.age"]).all()
