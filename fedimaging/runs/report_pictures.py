"""Pictures of a run folder, embedded in its page with captions in words."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedimaging.errors import RunError, bad_value
from fedimaging.runs.report_view import part

_PICTURE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def examples(run: Path, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each example with its picture embedded and its caption in words."""
    names = part(report, "task").get("class_names") or []
    kind = part(report, "task").get("kind")
    return [
        {
            "picture": embed(run, one.get("file")), "where": one.get("site") or "unknown hospital",
            "number": one.get("patient_index"), "truth": _class_words(one.get("truth"), names),
            "prediction": _class_words(one.get("prediction"), names), "score": one.get("score"),
            "map": one.get("map"),
            "right": None if kind == "segmentation" else one.get("truth") == one.get("prediction"),
        }
        for one in part(report, "pictures").get("examples") or ()
    ]


def _class_words(value: Any, names: Sequence[str]) -> str | None:
    """A class number by its name; a list of them joined; words as they are."""
    if value is None:
        return None
    if isinstance(value, list):
        return ", ".join(_class_words(one, names) or "" for one in value) or "none"
    if isinstance(value, int) and 0 <= value < len(names):
        return str(names[value])
    return str(value)


def map_notes(shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the maps of these examples are, each kind once, in a sentence for the page."""
    notes: dict[str, None] = {}
    for one in shown:
        found = one.get("map") or {}
        if found.get("meaning"):
            why = f" ({found['why']})" if found.get("why") else ""
            notes[f"{found['meaning']}{why}."] = None
    return list(notes)


def embed(run: Path, name: str | None) -> str | None:
    """A picture of the run folder as a data URI; None when none is named or it is gone."""
    if not name:
        return None
    path, folder = (run / name).resolve(), run.resolve()
    if not path.is_relative_to(folder) or path.suffix.lower() not in _PICTURE_TYPES:
        raise RunError(bad_value("pictures", name, "is not a PNG or JPEG inside the run folder", "mend report.json"))
    if not path.is_file():
        return None
    return f"data:{_PICTURE_TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
