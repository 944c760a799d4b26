"""Every model at every hospital: which figures stand where, and why some cells are empty."""

from typing import Any

from fedimaging.runs.matrix import matrix


def figure(value: float | None, patients: int = 12) -> dict[str, Any]:
    ends = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {"auroc": {"value": value, "low": ends[0], "high": ends[1], "n_patients": patients}}


def site(value: float | None, role: str = "train", test_patients: int = 12) -> dict[str, Any]:
    return {"role": role, "test_patients": test_patients, "test": figure(value)}


def report(**local: Any) -> dict[str, Any]:
    return {
        "task": {"kind": "binary", "primary_metric": "auroc"},
        "sites": {"c": site(0.8, "held_out"), "a": site(0.9), "b": site(None), "empty": site(None, test_patients=0)},
        "baselines": {"pooled": {"sites": {"a": figure(0.95), "b": figure(None)}}, "local_only": local},
    }


def test_rows_are_models_columns_are_hospitals_with_test_patients_and_the_held_out_last() -> None:
    found = matrix(report(matrix={"a": {"a": figure(0.7), "b": figure(None), "c": figure(0.6)}}))
    assert found is not None
    assert (found["metric"], found["hospitals"]) == ("auroc", ["a", "b", "c"])
    assert [(row["model"], row["of"]) for row in found["rows"]] == [
        ("a", "local_only"), ("Pooled", "pooled"), ("Federated", "federated")]  # fmt: skip
    assert found["rows"][0]["cells"]["a"] == {"value": 0.7, "low": 0.7 - 0.1, "high": 0.7 + 0.1, "n_patients": 12, "why": None}
    assert found["rows"][2]["cells"]["c"]["value"] == 0.8


def test_an_empty_cell_says_why() -> None:
    found = matrix(report(matrix={"a": {"a": figure(0.7), "b": figure(None)}, "b": {}}, refused={"b": "budget_exceeded"}))
    assert found is not None
    why = {(row["model"], place): cell["why"] for row in found["rows"] for place, cell in row["cells"].items()}
    assert why["a", "b"] == "one class only"
    assert why["a", "c"] == "not tried here"
    assert why["b", "a"] == "its training was refused (budget_exceeded)"
    assert why["Pooled", "c"] == "nothing released"
    assert why["a", "a"] is None


def test_a_run_without_baselines_has_no_matrix() -> None:
    assert matrix(report() | {"baselines": {}}) is None
