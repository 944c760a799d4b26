"""What a sweep is asked for, and the runs that follow from it: budgets x units x seeds x any keys of the study.

A seed changes the study's `seed` alone: initial weights, noise and order. The split of the patients and who holds them
stay, so that intervals over seeds are over training, and those over patients come from the bootstrap.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedimaging.errors import StudyError, bad_value
from fedimaging.study.load import apply_override, parse, read_yaml
from fedimaging.study.schema import Study

UNITS = ("patient", "record")
_OWN_KEYS = {"seed": "--seeds", "privacy": "--epsilon", "privacy.unit": "--unit", "privacy.target_epsilon": "--epsilon",
             "privacy.noise_multiplier": "--epsilon"}
_CLOSES = {"[": "]", "{": "}", '"': '"', "'": "'"}


@dataclass(frozen=True)
class Asked:
    """A sweep as the command line says it. `epsilons` may hold infinity: the non-private study. `units`
    empty: the study's own. `overrides`: key=value, or
    key=value1,value2 … for an axis of the grid. `baselines`: also pooled data and each hospital alone, without privacy."""

    study: Path
    epsilons: tuple[float, ...]
    units: tuple[str, ...] = ()
    seeds: int = 1
    overrides: tuple[str, ...] = ()
    baselines: bool = True
    audit: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """One run of the grid. `unit` is empty where epsilon is infinite. `keys`: the value of each axis, as text."""

    name: str
    study: Study
    epsilon: float
    unit: str
    seed: int
    keys: tuple[tuple[str, str], ...]
    baselines: bool = False
    audit: bool = False

    @property
    def cell(self) -> tuple[float, str, tuple[tuple[str, str], ...]]:
        """All but the seed."""
        return self.epsilon, self.unit, self.keys


def expand(asked: Asked) -> list[PlannedRun]:
    """The runs of a sweep, each with its whole study, in the order in which their results are listed.

    With baselines the non-private runs belong to every sweep: they are what a budget is compared with, and they carry the
    baselines, once for each seed and choice of keys. Errors: StudyError, every one before anything trains.
    """
    tree = read_yaml(asked.study)
    axes = _axes(tree, asked.overrides)
    _check(asked, tree, axes)
    units = asked.units or (_own_unit(tree),)
    epsilons = sorted({*asked.epsilons, *([math.inf] if asked.baselines else [])})
    first = _first_seed(tree)
    runs: dict[str, PlannedRun] = {}
    for values in itertools.product(*axes.values()):
        for epsilon in epsilons:
            keys = keys_at(epsilon, tuple(zip(axes, values, strict=True)))
            for unit in units if math.isfinite(epsilon) else ("",):
                for place in range(asked.seeds):
                    run = _run(asked, tree, epsilon, unit, first + place, keys, first_seed=place == 0)
                    runs[run.name] = run
    return list(runs.values())


def keys_at(epsilon: float, keys: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The keys that a run at this budget has: keys of the privacy block say nothing about a run without privacy, so that
    one such run is compared with all their values."""
    return keys if math.isfinite(epsilon) else tuple((key, value) for key, value in keys if not key.startswith("privacy."))


def split_values(text: str) -> list[str]:
    """`1,3` -> 1 and 3; a comma inside brackets, braces or quotes belongs to its value. Error: StudyError."""
    values: list[str] = []
    closing: list[str] = []
    start = 0
    for place, letter in enumerate(text):
        if closing and letter == closing[-1]:
            closing.pop()
        elif letter in _CLOSES and (not closing or closing[-1] not in "\"'"):
            closing.append(_CLOSES[letter])
        elif letter == "," and not closing:
            values.append(text[start:place])
            start = place + 1
    values = [value.strip() for value in (*values, text[start:])]
    if closing or not all(values):
        raise StudyError(bad_value("override values", text, "have an empty value, or a bracket or quote that is not closed"))
    return values


def epsilons_of(text: str) -> tuple[float, ...]:
    """`0.5,8,inf` -> the budgets, in order. Error: StudyError for what is no number above 0, or given twice."""
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not value > 0:
            raise StudyError(bad_value("--epsilon", part.strip(), "is no number above 0", "give budgets like 0.5,1,3,8,inf"))
        found.append(value)
    _check_once("--epsilon", found)
    return tuple(found)


def units_of(text: str) -> tuple[str, ...]:
    """`patient,record` -> both. Error: StudyError for another name, or one given twice."""
    found = tuple(part.strip() for part in text.split(","))
    for unit in found:
        if unit not in UNITS:
            raise StudyError(bad_value("--unit", unit, f"is none of {', '.join(UNITS)}"))
    _check_once("--unit", found)
    return found


def epsilon_word(epsilon: float) -> str:
    """`8`, `0.5`, `inf`: as tables and folder names write a budget."""
    return "inf" if math.isinf(epsilon) else f"{epsilon:.10g}"


def _axes(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Put overrides of one value into the tree; return the others."""
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        values = split_values(text) if equals and text.strip() else [text]
        if len(values) > 1:
            _check_once(f"-o {key}", values)
            axes[key] = values
        else:
            apply_override(tree, override)
    return axes


def _own_unit(tree: Mapping[str, Any]) -> str:
    """What the study says is validated with it, later."""
    privacy = tree.get("privacy")
    return str(privacy.get("unit", UNITS[0])) if isinstance(privacy, dict) else UNITS[0]


def _first_seed(tree: Mapping[str, Any]) -> int:
    seed = tree.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise StudyError(bad_value("seed", seed, "is no whole number"))
    return seed


def _check(asked: Asked, tree: Mapping[str, Any], axes: Mapping[str, Sequence[str]]) -> None:
    finite = [epsilon for epsilon in asked.epsilons if math.isfinite(epsilon)]
    if not asked.epsilons or asked.seeds < 1:
        raise StudyError("a sweep needs at least one budget and one seed; e.g. --epsilon 1,8,inf --seeds 3.")
    if finite and not isinstance(tree.get("privacy"), dict):
        raise StudyError(
            f"--epsilon {epsilon_word(finite[0])} needs a study with a privacy block, and {str(asked.study)!r} has none; add "
            "one with delta and clip_norm, or ask for --epsilon inf alone."
        )
    if "record" in asked.units and not finite:
        raise StudyError("--unit record has no meaning where no budget is finite; add one to --epsilon, or leave it out.")
    for key in axes:
        if key in _OWN_KEYS:
            raise StudyError(f"-o {key} with several values is {_OWN_KEYS[key]}'s to vary; use that.")


def _run(
    asked: Asked, base: Mapping[str, Any], epsilon: float, unit: str, seed: int, keys: tuple[tuple[str, str], ...], *,
    first_seed: bool,
) -> PlannedRun:
    tree = deepcopy(dict(base))
    for key, value in keys:
        apply_override(tree, f"{key}={value}")
    tree["seed"] = seed
    private = math.isfinite(epsilon)
    if private:
        tree["privacy"] = (tree.get("privacy") or {}) | {"unit": unit, "target_epsilon": epsilon, "noise_multiplier": None}
    else:
        tree["privacy"] = None
    name = _name(epsilon, unit, seed, keys)
    try:
        study = parse(tree, str(asked.study))
    except StudyError as error:
        raise StudyError(f"run {name} of the sweep: {error}") from None
    return PlannedRun(name, study, epsilon, unit, seed, keys, asked.baselines and not private, asked.audit and first_seed)


def _name(epsilon: float, unit: str, seed: int, keys: tuple[tuple[str, str], ...]) -> str:
    """A folder's name. Values that a folder cannot be called by, or long ones, are told apart by a piece of their hash."""
    parts = [f"epsilon_{epsilon_word(epsilon)}", unit, f"seed_{seed}"]
    for key, value in keys:
        plain = re.sub(r"[^A-Za-z0-9.]+", "_", value).strip("_")[:24]
        digest = "" if plain == value else "_" + hashlib.sha256(value.encode()).hexdigest()[:6]
        parts.append(f"{key.rsplit('.', 1)[-1]}_{plain}{digest}")
    return "-".join(part for part in parts if part)


def _check_once(name: str, values: Sequence[object]) -> None:
    doubled = next((value for value in values if list(values).count(value) > 1), None)
    if doubled is not None:
        raise StudyError(bad_value(name, doubled, "is given twice"))
