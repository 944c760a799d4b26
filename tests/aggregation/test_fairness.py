"""Weights that follow released evaluations: exact small numbers."""

import math

import pytest

from fedimaging.aggregation.fairness import FairnessSpec, next_factors, risks_of, weighed
from fedimaging.results import SiteEvaluation

EQUAL = {"a": 1.0, "b": 1.0, "c": 1.0}
RISKS = {"a": 0.2, "b": 0.4, "c": 0.8}


def _said(site: str, loss: float, **metrics: float) -> SiteEvaluation:
    return SiteEvaluation(site, 1, loss, 10, metrics)


def test_q_fair_weighs_by_the_power_of_the_risk() -> None:
    factors = next_factors(FairnessSpec(kind="q_fair", q=2.0), {}, RISKS, EQUAL)
    assert factors == pytest.approx({"a": 0.25, "b": 1.0, "c": 4.0})
    again = next_factors(FairnessSpec(kind="q_fair", q=2.0), factors, RISKS, EQUAL)  # it has no memory
    assert again == factors


def test_q_0_gives_the_public_weights_to_the_bit() -> None:
    public = {"a": 0.1, "b": 1 / 3, "c": 7.3}
    assert weighed(public, next_factors(FairnessSpec(kind="q_fair", q=0.0), {}, RISKS, public)) == public


def test_minimax_climbs_at_the_worst_hospital_at_every_evaluation() -> None:
    spec, factors = FairnessSpec(kind="minimax", step=0.5), {}
    for time in (1, 2, 3):
        factors = next_factors(spec, factors, RISKS, EQUAL)
        assert factors == pytest.approx({"a": math.exp(-0.1 * time), "b": 1.0, "c": math.exp(0.2 * time)})


def test_a_hospital_that_lies_gets_no_more_than_the_study_allows_and_moves_nobody_else() -> None:
    for kind in ("q_fair", "minimax"):
        spec = FairnessSpec.model_validate({"kind": kind, "most": 3.0})
        honest = next_factors(spec, {}, RISKS, EQUAL)
        lied = next_factors(spec, {}, RISKS | {"c": 1e300}, EQUAL)
        assert lied == honest | {"c": pytest.approx(3.0)}


def test_who_lets_nothing_leave_is_taken_at_the_median_and_nobody_known_changes_nothing() -> None:
    spec = FairnessSpec(kind="q_fair")
    assert next_factors(spec, {}, {"a": 0.2, "b": 0.4, "z": 9.0}, EQUAL) == pytest.approx({"a": 1.0, "b": 2.0, "c": 1.0})
    assert next_factors(spec, {"a": 2.0}, {}, EQUAL) == {"a": 2.0}
    assert next_factors(FairnessSpec(), {}, RISKS, EQUAL) == {}


def test_a_perfect_hospital_still_counts() -> None:
    assert next_factors(FairnessSpec(kind="q_fair", q=10), {}, {"a": 0.0, "b": 1.0}, EQUAL)["a"] == pytest.approx(1.0)
    assert next_factors(FairnessSpec(kind="q_fair", q=10), {}, {"a": 0.0, "b": 1.0, "c": 1.0}, EQUAL)["a"] == pytest.approx(0.1)


def test_the_risk_is_the_loss_or_for_all_what_is_missing_of_the_metric() -> None:
    assert risks_of([_said("a", 0.3, auroc=0.9), _said("b", 0.5, auroc=0.6)], "auroc") == {"a": 0.3, "b": 0.5}
    noised = [_said("a", 0.3, auroc=0.9), _said("b", math.nan, auroc=0.75), _said("c", math.nan, auroc=math.nan)]
    assert risks_of(noised, "auroc") == pytest.approx({"a": 0.1, "b": 0.25})
