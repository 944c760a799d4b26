"""Import the parts of MONAI that are used, not the whole of it.

`import monai` runs nearly every module of the library: about seven seconds at the start of every command, of every Ray
actor and of every hospital, when one network needs a tenth of a second. With this finder installed, the names that a MONAI
package imports from its own modules are looked up when first asked for (PEP 562); everything else in a package runs as its
authors wrote it, and `monai.anything` still works.
"""

import ast
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = "monai"


def install() -> None:
    """Make imports of MONAI lean from here on, in this process. Nothing happens where it was imported before."""
    if _ROOT not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds MONAI's packages as Python does, and gives them the loader below."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _ROOT:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.submodule_search_locations and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _LeanLoader(spec.loader.name, spec.loader.path)
        return spec


class _LeanLoader(SourceFileLoader):
    """Runs a package's `__init__`, but leaves its imports from its own modules until they are wanted."""

    def exec_module(self, module: ModuleType) -> None:
        tree = ast.parse(Path(self.path).read_text(encoding="utf-8"))
        body = [node for node in tree.body if not _loads_everything(node)]
        own = [node for node in body if isinstance(node, ast.ImportFrom) and _may_wait(node, body)]
        later = {alias.asname or alias.name: (node.module, alias.name) for node in own for alias in node.names}
        module.__dict__["__getattr__"] = _on_demand(module, later)
        module.__dict__.setdefault("__all__", sorted(later))
        rest = ast.Module([node for node in body if node not in own], type_ignores=[])
        exec(compile(rest, self.path, "exec"), module.__dict__)


def _loads_everything(node: ast.stmt) -> bool:
    """MONAI's own call that imports each of its modules."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "load_submodules"


def _may_wait(node: ast.ImportFrom, body: list[ast.stmt]) -> bool:
    """`from .part import Name`, where nothing else in the file uses Name."""
    names = {alias.asname or alias.name for alias in node.names}
    used = {found.id for other in body for found in ast.walk(other) if isinstance(found, ast.Name)}
    return node.level == 1 and "*" not in names and not names & used


def _on_demand(module: ModuleType, later: dict[str, tuple[str | None, str]]) -> Callable[[str], Any]:
    """The package's `__getattr__`: an import that was left for later, or one of its modules."""
    package = module.__name__

    def look_up(name: str) -> Any:
        part, original = later.get(name, (None, name))
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if part is not None:
            value = getattr(importlib.import_module(f"{package}.{part}"), original)
        else:
            value = _submodule(package, original)
        module.__dict__[name] = value
        return value

    return look_up


def _submodule(package: str, name: str) -> ModuleType:
    full = f"{package}.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
