"""The worst hospital and group: the lowest, or highest where lower is better, of those that are large enough."""

from typing import Any

import pytest

from fedimaging.runs.worst import worst_group, worst_hospital


def figure(value: float | None, patients: int, metric: str = "auroc") -> dict[str, Any]:
    return {metric: {"value": value, "low": value, "high": value, "n_patients": patients}}


def report(metric: str = "auroc", **values: tuple[float | None, int]) -> dict[str, Any]:
    sites = {name: {"role": "held_out" if name == "away" else "train", "test": figure(*pair, metric)}
             for name, pair in values.items()}  # fmt: skip
    return {"task": {"primary_metric": metric}, "sites": sites}


@pytest.mark.parametrize(("metric", "worst"), [("auroc", "a"), ("brier", "b")])
def test_the_worst_training_hospital_of_those_that_are_large_enough(metric: str, worst: str) -> None:
    found = worst_hospital(report(metric, a=(0.7, 20), b=(0.9, 10), small=(0.1, 9), c=(None, 50), away=(0.2, 99)), 10)
    assert found is not None
    assert (found["hospital"], found["compared"], found["too_few"], found["metric"]) == (worst, 2, 1, metric)
    assert found["value"] == {"a": 0.7, "b": 0.9}[worst]


def test_one_hospital_is_not_the_worst_of_any() -> None:
    assert worst_hospital(report(a=(0.7, 20), b=(0.9, 9)), 10) is None


def test_the_worst_group_is_looked_for_in_all_columns() -> None:
    groups = {"sex": {"F": figure(0.8, 20), "M": figure(0.9, 20), "too few": {"groups": 1, "n_patients": 3}},
              "age": {"under 40": figure(0.6, 15), "40 and over": figure(None, 12), "not stated": figure(0.1, 40)}}  # fmt: skip
    found = worst_group(report() | {"groups": groups})
    assert found is not None
    assert (found["column"], found["group"], found["value"], found["compared"]) == ("age", "under 40", 0.6, 3)
    assert worst_group(report()) is None
