"""Import the parts of two large libraries that are used, not the whole of them.

`import monai` runs nearly every module of MONAI: about seven seconds at the start of every command, of every Ray actor and
of every hospital, when one network needs a tenth of a second; dp_accounting loads half of SciPy for one accountant. With
this finder installed, the names that a package of theirs imports from its own modules are looked up when first asked for
(PEP 562); everything else runs as its authors wrote it, and `monai.anything` still works.
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

_ROOTS = ("monai", "dp_accounting")


def install() -> None:
    """Make imports of these libraries lean from here on, in this process. One that was imported before is left alone."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder([root for root in _ROOTS if root not in sys.modules]))


class _Finder(MetaPathFinder):
    """Finds the packages of these libraries as Python does, and gives them the loader below."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._roots:
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
        package = module.__name__
        own = [node for node in body if isinstance(node, ast.ImportFrom) and _may_wait(node, package, body)]
        later = {alias.asname or alias.name: (_source(node, package), alias.name) for node in own for alias in node.names}
        module.__dict__["__getattr__"] = _on_demand(module, later)
        module.__dict__.setdefault("__all__", sorted(later))
        rest = ast.Module([node for node in body if node not in own], type_ignores=[])
        exec(compile(rest, self.path, "exec"), module.__dict__)


def _loads_everything(node: ast.stmt) -> bool:
    """MONAI's own call, which imports each of its modules."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "load_submodules"


def _may_wait(node: ast.ImportFrom, package: str, body: list[ast.stmt]) -> bool:
    """`from .part import Name`, where nothing else in the file uses Name."""
    names = {alias.asname or alias.name for alias in node.names}
    used = {found.id for other in body for found in ast.walk(other) if isinstance(found, ast.Name)}
    own = f"{_source(node, package)}.".startswith(f"{package}.")
    return own and "*" not in names and not names & used


def _source(node: ast.ImportFrom, package: str) -> str:
    """The full name of what is imported from; of a package further out, something that is no name."""
    if node.level == 0:
        return node.module or ""
    return "." if node.level > 1 else f"{package}.{node.module}" if node.module else package


def _on_demand(module: ModuleType, later: dict[str, tuple[str, str]]) -> Callable[[str], Any]:
    """The package's `__getattr__`: an import that was left for later, or one of its modules."""
    package = module.__name__

    def look_up(name: str) -> Any:
        source, original = later.get(name, (package, name))
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = _submodule(package, original) if source == package else getattr(importlib.import_module(source), original)
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
