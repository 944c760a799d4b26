"""What was approved keeps its fingerprint when keys are added, and nothing else shares it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedimaging.study.added_keys import ADDED, without_added
from fedimaging.study.load import parse
from fedimaging.study.schema import Study, canonical

FIRST = Path(__file__).with_name("first_study.json")
"""The canonical form of the study below as it was when the table of added keys began."""
STUDY = """
name: first-study
seed: 3
data:
  source: phantoms
  image_size: [16, 16]
  split: {test: 0.25, validation: 0.1, seed: 1}
  phantoms: {patients: 60, hospitals: 3}
task: {kind: binary, label: lesion, class_names: [without, with]}
hospitals: {by: column, column: site, held_out: [hospital_03]}
model: {name: small_cnn, options: {width: 4}}
training: {optimizer: sgd, learning_rate: 0.5, batch_size: 8, local_steps: 2, augment: {flip: true}}
privacy: {target_epsilon: 8.0, delta: 1.0e-4}
federation:
  algorithm: fedavgm
  server_momentum: 0.9
  rounds: 4
  site_privacy: {clip_norm: 1.0, noise_multiplier: 1.0, delta: 0.01}
"""


def first_study() -> Study:
    return parse(yaml.safe_load(STUDY), "the first study")


def test_an_update_of_the_software_leaves_an_approved_study_its_fingerprint() -> None:
    """Fails where a key was added that is not in ADDED, or a default changed: hospitals would have to approve again."""
    assert json.loads(canonical(first_study())) == json.loads(FIRST.read_text(encoding="utf-8"))
    assert first_study().fingerprint == "ff0057f8e470b2568663c2336a5f730242d7577f038e1de2f4cddf982981cc57"


def test_entries_are_never_changed_or_removed() -> None:
    """With another value, another study would carry an approved fingerprint. New entries are added here too."""
    assert dict(ADDED) == {
        "evaluation.calibration": "none",
        "policy.release_calibration": None,
        "policy.calibration_noise_multiplier": 4.0,
        "federation.fairness": {"kind": "none", "q": 1.0, "step": 1.0, "most": 10.0},
        "training.balance": None,
        "personalisation": {"kind": "none", "steps": 20, "learning_rate": 0.1, "mu": 0.0},
        "release": None,
        "evaluation.group_values": {},
        "evaluation.operating_point": None,
        "policy.release_groups": "none",
        "policy.minimum_group": 2,
    }


TREE = {"federation": {"rounds": 3, "later": None, "group": {"old": 1.0, "newer": False}}, "privacy": None}
TABLE = {"federation.later": None, "federation.group": {"old": 1.0}, "federation.group.newer": False, "privacy.later": 0}


def test_a_key_that_changes_nothing_is_left_out() -> None:
    assert without_added(TREE, TABLE) == {"federation": {"rounds": 3}, "privacy": None}
    assert TREE["federation"]["group"] == {"old": 1.0, "newer": False}  # type: ignore[index]  # the tree itself stays


@pytest.mark.parametrize(("key", "value"), [("later", 0), ("later", False), ("group", None), ("group", {"old": 1.0, "newer": 0}),
                                            ("group", {"old": 2.0, "newer": False}), ("group", {"old": 1, "newer": False}),
                                            ("rounds", None)])
def test_at_any_other_value_a_key_stays(key: str, value: Any) -> None:
    """So that no two studies share a canonical form: equal by Python's == is not enough."""
    tree = {**TREE, "federation": {**TREE["federation"], key: value}}  # type: ignore[dict-item]
    left = without_added(tree, TABLE)
    assert key in left["federation"]
    assert json.dumps(left) != json.dumps(without_added(TREE, TABLE))


def test_every_added_key_is_a_key_of_a_study() -> None:
    tree = first_study().model_dump(mode="json")
    for key in ADDED:
        node: Any = tree
        for part in key.split("."):
            assert part in node, key
            node = node[part]
