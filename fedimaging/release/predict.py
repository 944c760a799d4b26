"""`fedimaging predict`: every image gets calibrated probabilities, a flag where it is unlike what the model was tested on, and
one line in an append-only log from which it can be traced to model, study, people and ledgers.

The results are written where the images are, for those who may see them: predictions.csv names files, the log does not.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.data.manifest import read_table
from fedimaging.errors import DataError
from fedimaging.files import sha256_of, write_text
from fedimaging.release.explained import write_map
from fedimaging.release.inference import find_images, write_mask
from fedimaging.release.opened import Predicted, Release
from fedimaging.release.trace import content_hash
from fedimaging.site.audit_log import AuditLog, read

LOG, TABLE = "predictions.log", "predictions.csv"


@dataclass(frozen=True)
class Result:
    """One image: what the log holds of it, and its line there (from 1); `fault` where it could not be read."""

    path: Path
    line: int | None
    facts: Mapping[str, Any]
    fault: str | None = None


def images_in(release: Release, given: Sequence[Path]) -> list[Path]:
    """Files, the files in folders, and the images that a manifest (.csv) lists. Error: DataError for what is not there."""
    found: list[Path] = []
    for path in given:
        if path.suffix.lower() == ".csv":
            table = read_table(path, release.study.data.columns)
            found += [table.file("image", row) for row in range(len(table))]
        elif path.exists():
            found += find_images(path)
        else:
            raise DataError(f"{path} is missing; name images, folders of images, or a manifest (.csv).")
    if not found:
        raise DataError("no image was named; name images, folders of images, or a manifest (.csv).")
    return found


def predict(
    release: Release, images: Sequence[Path], out: Path, say: Callable[[str], None], *, maps: bool = True
) -> list[Result]:
    """Predict every image, append to OUT/predictions.log, and write OUT/predictions.csv, with `maps` OUT/maps/ (what speaks for
    the answer, or where a segmentation is unsure) and OUT/masks/ of a segmentation; files are named by their image's sha256.

    An image that cannot be read has a `fault` and stops nobody else. Errors: RunError where `out` cannot be written;
    LedgerError for a log that was altered.
    """
    out.mkdir(parents=True, exist_ok=True)
    log, line = AuditLog(out / LOG), len(read(out / LOG))
    results = []
    for path in images:
        try:
            facts = _one(release, path, out, maps=maps)
        except DataError as error:
            results.append(Result(path, None, {}, str(error)))
        else:
            log.write("prediction", **facts)
            line += 1
            results.append(Result(path, line, facts))
        say(words(release, results[-1]))
    write_text(out / TABLE, _table(release, results))
    return results


def words(release: Release, result: Result) -> str:
    """One line for the terminal."""
    if result.fault is not None:
        return f"{result.path}: not predicted: {result.fault}"
    facts = result.facts
    what = "voxels" if "voxels" in facts else "probabilities"
    shown = ", ".join(f"{name} {value:,}" if what == "voxels" else f"{name} {value:.3f}" for name, value in facts[what].items())
    point = "" if facts.get("positive") is None else "; positive" if facts["positive"] else "; negative"
    flag = "; FLAGGED: unlike the images this model was tested on" if facts["flagged"] else ""
    return f"{result.path}: {shown}{point}{flag} (line {result.line})"


def _one(release: Release, path: Path, out: Path, *, maps: bool) -> dict[str, Any]:
    """What the log says of one image. Error: DataError."""
    image, scan = release.prepare.both(path)
    found = release.predict(image[None])
    strange = float(found.strangeness[0])
    known = not math.isnan(strange)
    facts: dict[str, Any] = {
        "image_sha256": content_hash(path), "release_sha256": release.sha256, "model_sha256": release.manifest["model_sha256"],
        "study_fingerprint": release.manifest["study_fingerprint"],
        "strangeness": round(strange, 6) if known else None, "flagged": known and strange > release.flag_above,
        "calibrated": release.calibration is not None,
    }
    name = facts["image_sha256"][:16]
    if maps:
        facts["map"] = write_map(release, image, found.probability[0], out / "maps" / f"{name}.png")
    if release.study.task.kind != "segmentation":
        return facts | _classified(release, found)
    labels = found.probability[0].argmax(0)
    mask = write_mask(labels, scan, release.prepare.spec.model_dump(mode="json"), out / "masks", name)
    counts = np.bincount(labels.ravel(), minlength=len(release.class_names))
    return facts | {"voxels": dict(zip(release.class_names, counts.tolist(), strict=True)), "mask_sha256": sha256_of(mask)}


def _classified(release: Release, found: Predicted) -> dict[str, Any]:
    """`probabilities`; what was `predicted`: the likeliest class, or every label above a half; `positive` by the operating
    point, which was chosen before calibration and is compared so."""
    values = [round(float(value), 9) for value in found.probability[0]]
    named = dict(zip(release.class_names, values, strict=True))
    if release.study.task.kind == "multilabel":
        predicted = [name for name, value in named.items() if value > 0.5]
    else:
        predicted = [max(named, key=lambda name: named[name])]
    threshold = (release.operating_point or {}).get("threshold")
    positive = None if threshold is None else bool(found.uncalibrated[0, 1] >= threshold)
    return {"probabilities": named, "predicted": predicted, "positive": positive}


def _table(release: Release, results: Sequence[Result]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "log_line", *release.class_names, "positive", "strangeness", "flagged", "fault"])
    for result in results:
        facts = result.facts
        values = facts.get("probabilities") or facts.get("voxels") or {}
        writer.writerow([
            result.path, result.line or "", *(values.get(name, "") for name in release.class_names),
            *(_cell(facts.get(key)) for key in ("positive", "strangeness", "flagged")), result.fault or "",
        ])
    return text.getvalue()


def _cell(value: object) -> object:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value
