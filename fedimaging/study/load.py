"""Read a study, or another spec, from YAML, with overrides, and say clearly what is wrong with it."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fedimaging.errors import FedimagingError, StudyError
from fedimaging.spec import Spec
from fedimaging.study.schema import Study

S = TypeVar("S", bound=Spec)


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key given twice: YAML itself would let the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        doubled = next((key for key in keys if keys.count(key) > 1), None)
        if doubled is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {doubled!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study in `path` (YAML) with `a.b=c` overrides applied. Error: StudyError, every fault in one message."""
    tree = read_yaml(path)
    for override in overrides:
        apply_override(tree, override)
    return parse(tree, str(path))


def read_yaml(path: Path, what: str = "study", fault: type[FedimagingError] = StudyError) -> dict[str, Any]:
    """The mapping in a YAML file, read by the safe loader: nothing in it can run. Error: of the class `fault`."""
    name = f"{what} file {str(path)!r}"
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise fault(f"{name} does not exist; give the path of a YAML {what}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise fault(f"{name} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise fault(f"{name} is not valid YAML: {_one_line(error)}.") from None
    if not isinstance(tree, dict):
        raise fault(f"{name} holds no mapping of keys to values; see configs/ for examples.")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one key of the tree in place from `a.b=value` (value in YAML). Error: StudyError."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise StudyError(f"override {override!r} is not of the form key.subkey=value; e.g. -o federation.rounds=3.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"override {override!r} has no valid YAML value: {_one_line(error)}.") from None
    node = tree
    for name in names[:-1]:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise StudyError(f"override {override!r}: {name!r} holds a single value, not a group of keys.")
        node = child
    node[names[-1]] = value


def parse(tree: dict[str, Any], where: str) -> Study:
    """Validate a tree. Error: StudyError with each faulty key, what was given and what is allowed."""
    return validated(Study, tree, f"study {where!r}")


def validated(spec: type[S], tree: dict[str, Any], name: str, fault: type[FedimagingError] = StudyError) -> S:
    """The spec that a tree describes. Error: of the class `fault`, as `parse`."""
    try:
        return spec.model_validate(tree)
    except ValidationError as error:
        faults = [_fault(spec, item) for item in error.errors(include_url=False)]
        raise fault(f"{name} has {_count(faults)}: " + " ".join(faults)) from None


def _fault(spec: type[Spec], item: Any) -> str:
    location = [part for part in item["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(spec, location[:-1])
        near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{key} is not a known key; {hint}known here: {', '.join(known)}."
    if item["type"] == "missing":
        return f"{key} is missing; add it."
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f"={given!r}"
    return f"{key or 'study'}{shown}: {message[:1].lower()}{message[1:]}."


def _known_keys(root: type[Spec], location: Iterable[str | int]) -> list[str]:
    spec: type[BaseModel] = root
    for part in location:
        field = spec.model_fields.get(str(part))
        if field is None:
            return sorted(spec.model_fields)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not nested:
            return sorted(spec.model_fields)
        spec = nested[0]
    return sorted(spec.model_fields)


def _count(faults: list[str]) -> str:
    return "one fault" if len(faults) == 1 else f"{len(faults)} faults"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
