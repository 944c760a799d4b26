"""Imports go one way; each outside package has its few places; the ledger needs the standard library only."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fedimaging"
RANK = {
    "cli": 10, "cli_audit": 9, "cli_server": 9, "cli_site": 9, "cli_sweep": 9, "cli_release": 9, "release": 8,
    "runs": 7, "federated": 6, "site": 5, "study": 4, "training": 3, "audits": 3,
    "privacy": 2, "data": 2, "models": 2, "aggregation": 2, "keys": 2,
    "files": 1, "lean_imports": 1, "results": 1, "spec": 1, "errors": 0,
}
ONLY_IN = {
    "flwr": {"federated"}, "ray": {"federated"}, "monai": {"models", "training", "data"},
    "typer": {"cli", "cli_audit", "cli_server", "cli_site", "cli_sweep", "cli_release"},
}


def _imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "fedimaging"}
    return names


def _package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = _package(path)
    if here == "__init__":
        return
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "fedimaging" and len(parts) > 1 and parts[1] in RANK and parts[1] != here:
            assert RANK[parts[1]] < RANK[here], f"{here} may not import {name}"
        if parts[0] in ONLY_IN:
            assert here in ONLY_IN[parts[0]], f"{here} may not import {parts[0]}"


def test_only_three_files_touch_flower_internals() -> None:
    public = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}
    private = {
        path.name for path in (ROOT / "federated").glob("*.py")
        for name in _imports(path) if name.startswith("flwr") and name not in public
    }
    assert private == {"flower_internals.py", "flower_http.py", "flower_requests.py"}


AUDITED = (
    "privacy/ledger.py", "privacy/ledger_events.py", "privacy/ledger_verify.py", "privacy/ledger_text.py",
    "privacy/budget.py", "site/audit_log.py", "site/verify_log.py",
)


@pytest.mark.parametrize("file", AUDITED)
def test_auditors_files_need_the_standard_library_only(file: str) -> None:
    for name in _imports(ROOT / file):
        root = name.split(".")[0]
        ours = ("fedimaging.errors", "fedimaging.privacy", "fedimaging.site.audit_log", "fedimaging.__version__")
        assert root in sys.stdlib_module_names or name == "fedimaging" or name.startswith(ours)


@pytest.mark.parametrize("package", [
    "study", "privacy/spec.py", "data/spec.py", "models/spec.py", "training/spec.py", "cli.py", "cli_audit.py", "cli_server.py",
    "cli_sweep.py", "cli_release.py",
])
def test_reading_a_study_loads_nothing_heavy(package: str) -> None:
    path = ROOT / package
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        heavy = {name.split(".")[0] for name in _imports(file, top_level=True)} & {"torch", "monai", "flwr", "opacus", "sklearn"}
        assert not heavy
