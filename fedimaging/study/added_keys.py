"""Keys that were added to studies after hospitals had begun to approve them, and at which value they change nothing.

A study that holds a key at this value means what it meant before the key existed, and keeps its fingerprint: an update of
the software alone does not make hospitals approve again. Guarantee: two studies that differ have different canonical
forms, for a key is left out at one value only, and that value stands here and not in the key's default. Should a default
change one day, a study that does not name the key gets the new value, which is not left out: a new fingerprint, a new
approval.

Entries are never changed or removed: with another value here, another study would carry the fingerprint that somebody
approved. A key belongs here only if, at this value, the code does bit for bit what it did before the key. Where that is
not so (or where hospitals should look again), leave it out of the table: then every study's fingerprint changes.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ADDED: Mapping[str, Any] = MappingProxyType({
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
})
"""Key, with dots -> the value (as JSON) at which it changes nothing. Of a group of keys: the group, and each of its keys that
came later still."""


def without_added(tree: dict[str, Any], added: Mapping[str, Any] = ADDED) -> dict[str, Any]:
    """A study's tree (nested dictionaries of JSON values) without the added keys that change nothing; a new tree."""
    copy = _copied(tree)
    for key in sorted(added, key=lambda key: -key.count(".")):  # what is inside a group goes before the group
        *groups, last = key.split(".")
        node: Any = copy
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node and _same(node[last], added[key]):
            del node[last]
    return copy


def _copied(tree: Any) -> Any:
    return {key: _copied(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _same(a: object, b: object) -> bool:
    """The same JSON: 1, 1.0 and true are three values."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
