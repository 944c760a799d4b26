"""Every test that the pitfalls page names exists; every mistake on it has a severity of its list and a test."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "fedimaging" / "privacy" / "README.md"
COLUMNS = ["Mistake", "How bad", "What goes wrong", "What this library does", "Shown by"]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def lines_of_tables() -> list[list[str]]:
    """All rows of all tables of the page, as cells."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


ROWS = [row for row in lines_of_tables() if row != COLUMNS and not set(row[0]) <= {"-"}]


@cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_mistake_is_shown_by_tests_that_exist(row: list[str]) -> None:
    assert len(row) == len(COLUMNS)
    assert all(row)
    named = NAMED.findall(row[4])
    assert named
    assert re.sub(NAMED, "", row[4]).strip(" ,") == ""  # a name that the pattern does not read is not checked
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert test.startswith("test_")
        assert test in functions_in(file), f"{file} has no {test}"


def test_every_severity_is_one_of_the_list() -> None:
    listed = set(re.findall(r"^- \*\*(.+?)\*\*:", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert {row[1] for row in ROWS} == listed == {"void", "false ε", "leak", "reading"}


def test_every_table_has_the_same_columns_and_no_mistake_stands_twice() -> None:
    heads = [row for row in lines_of_tables() if row[0] == "Mistake"]
    assert heads == [COLUMNS] * len(heads)
    assert len({row[0] for row in ROWS}) == len(ROWS) > 30


def test_no_test_is_named_outside_the_tables() -> None:
    prose = "\n".join(line for line in PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith("|"))
    assert NAMED.findall(prose) == []
