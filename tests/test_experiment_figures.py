"""Figures in the tables of experiments' READMEs are copied by hand: each stands in the experiment's results."""

import json
import re
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
READMES = sorted(path for path in EXPERIMENTS.glob("*/README.md") if (path.parent / "results").is_dir())
_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.(\d+))?)(e-?\d+)?(?![\w.]*\d)")


def _numbers(text: str) -> list[tuple[float, float]]:
    """Each number, with half a unit of its last decimal; 0 for one without decimals."""
    found = []
    for digits, behind, exponent in _NUMBER.findall(text.replace(",", "")):
        power = 10.0 ** int((exponent or "e0")[1:])
        found.append((float(digits) * power, 0.5 * 10.0 ** -len(behind) * power if behind else 0.0))
    return found


def _in_json(tree: Any) -> list[float]:
    """Every number of the tree, also those in its texts."""
    if isinstance(tree, dict):
        return [one for key, value in tree.items() for part in (key, value) for one in _in_json(part)]
    if isinstance(tree, list):
        return [one for value in tree for one in _in_json(value)]
    if isinstance(tree, str):
        return [one for one, _ in _numbers(tree)]
    return [abs(float(tree))] if isinstance(tree, int | float) else []


def results_of(folder: Path) -> list[float]:
    """Absolute values of all numbers in the results, and of shares in percent; sorted."""
    found: list[float] = []
    for path in (folder / "results").iterdir():
        text = path.read_text(encoding="utf-8")
        found += _in_json(json.loads(text)) if path.suffix == ".json" else [one for one, _ in _numbers(text)]
    return sorted({*found, *(100 * one for one in found)})


def strangers(readme: str, known: list[float]) -> list[str]:
    """The lines of its tables with a figure that, as rounded there, is none of the known."""
    def is_known(value: float, half: float) -> bool:
        place = bisect_left(known, value - half * 1.001)
        return place < len(known) and known[place] <= value + half * 1.001

    lines = [line for line in readme.splitlines() if line.startswith("|")]
    return [line for line in lines if not all(is_known(value, half) for value, half in _numbers(line) if half)]


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_figures_of_a_readme_stand_in_its_results(path: Path) -> None:
    assert strangers(path.read_text(encoding="utf-8"), results_of(path.parent)) == []


def test_a_wrong_digit_is_found() -> None:
    known = [1.9e-06, 0.8436, 5431.2]
    assert strangers("| a | 0.844 (0.8436) | 1.9e-06 | 5,431.2 |\ntext 0.1", known) == []
    assert strangers("| a | 0.843 |\n| b | 1.8e-06 |\n| c | 0.84 |", known) == ["| a | 0.843 |", "| b | 1.8e-06 |"]
