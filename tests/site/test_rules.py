"""Every rule of a policy: kept where it is kept, broken by one step beyond it."""

from dataclasses import replace
from typing import Any

import pytest

from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.site.policy import SitePolicy
from fedimaging.site.rules import against
from fedimaging.study.load import parse

PLAN = DpPlan("patient", 100, 0.1, 1.0, 1.0, 1e-5, 10, 5)
KEPT = {
    "minimum_noise_multiplier": 1.0, "maximum_epochs": 1.0, "maximum_steps": 10, "maximum_rounds": 5, "minimum_patients": 100,
    "minimum_hospitals": 2, "tasks": ("binary",), "models": ("small_cnn",),
}  # fmt: skip


def study(**blocks: Any) -> Any:
    tree: dict[str, Any] = {
        "name": "s", "data": {"source": "manifest", "path": "m.csv"}, "task": {"kind": "binary", "label": "l"},
        "hospitals": {"sites": ["a", "b"]}, "model": {"name": "small_cnn"},
        "training": {"learning_rate": 0.1, "batch_size": 10, "local_epochs": 1.0},
        "privacy": {"noise_multiplier": 1.0}, "federation": {"rounds": 5, "minimum_replies": 2},
    }  # fmt: skip
    return parse(tree | blocks, "s")


def test_at_its_limits_a_study_is_within_the_policy() -> None:
    assert against(SitePolicy(**KEPT), study(), PLAN, 100) == []


@pytest.mark.parametrize(("rule", "said"), [
    ({"minimum_noise_multiplier": 1.01}, "the noise multiplier 1 is below minimum_noise_multiplier=1.01"),
    ({"maximum_epochs": 0.99}, "epochs in a round=1 is above maximum_epochs=0.99"),
    ({"maximum_steps": 9}, "steps in a round=10 is above maximum_steps=9"),
    ({"maximum_rounds": 4}, "federation.rounds=5 is above maximum_rounds=4"),
    ({"minimum_patients": 101}, "100 patients train here, fewer than minimum_patients=101"),
    ({"minimum_hospitals": 3}, "federation.minimum_replies=2 is below minimum_hospitals=3"),
    ({"tasks": ("segmentation",)}, "task.kind=binary is none of the tasks allowed here: segmentation"),
    ({"models": ("unet", "vit")}, "model.name=small_cnn is none of the models allowed here: unet, vit"),
])  # fmt: skip
def test_one_step_beyond_a_rule_is_told(rule: dict[str, Any], said: str) -> None:
    [reason] = against(SitePolicy(**(KEPT | rule)), study(), PLAN, 100)
    assert reason.startswith(said)


def test_scans_alone_are_protected_only_where_the_policy_says_so() -> None:
    record = replace(PLAN, unit="record", scans_per_patient=4)
    [reason] = against(SitePolicy(**KEPT), study(), record, 100)
    assert "unit must be patient" in reason
    assert against(SitePolicy(**KEPT, unit="any"), study(), record, 100) == []


def test_no_privacy_only_where_the_policy_says_so_and_then_within_its_lengths() -> None:
    plain = study(privacy=None)
    [reason] = against(SitePolicy(**KEPT), plain, None, 100)
    assert reason == "the study trains without differential privacy, and without_privacy is false here"
    lenient = SitePolicy(**KEPT, without_privacy=True)
    assert against(lenient, plain, None, 100) == []
    long = study(privacy=None, training={"learning_rate": 0.1, "batch_size": 1, "local_steps": 11})
    assert against(lenient, long, None, 100) == ["training.local_steps=11 is above maximum_steps=10"]
    longer = study(privacy=None, training={"learning_rate": 0.1, "batch_size": 1, "local_epochs": 2})
    assert against(lenient, longer, None, 100) == ["training.local_epochs=2 is above maximum_epochs=1"]


def test_a_delta_that_gives_somebody_away_is_told() -> None:
    [reason] = against(SitePolicy(**KEPT), study(), replace(PLAN, delta=0.01), 100)
    assert reason.startswith("delta=0.01 of the approved plan is not below one over the 100 patients")


def test_a_hospital_that_only_tests_is_held_to_what_concerns_it() -> None:
    assert against(SitePolicy(**KEPT | {"minimum_patients": 999, "maximum_steps": 1}), study(), None, None) == []
    assert len(against(SitePolicy(**KEPT | {"maximum_rounds": 1, "minimum_hospitals": 9}), study(), None, None)) == 2


def test_null_is_no_limit() -> None:
    names = ("maximum_epochs", "maximum_steps", "maximum_rounds", "tasks", "models")
    long = study(federation={"rounds": 99_999, "minimum_replies": 2})
    assert against(SitePolicy(**KEPT | dict.fromkeys(names)), long, replace(PLAN, steps_per_round=10**6), 100) == []
