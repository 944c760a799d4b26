"""The files of container/, which is no package: loaded by name."""

import importlib.util
from pathlib import Path
from types import ModuleType

CONTAINER = Path(__file__).parents[2] / "container"


def script(name: str) -> ModuleType:
    """container/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"container_{name}", CONTAINER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
