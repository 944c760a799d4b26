"""`fedimaging monitor`: does a released model still see what it was tested on? New scans against the release's own summary.

    OUT/monitoring.log   append-only, chained: every look with its level, and who acknowledged it, when and why
    OUT/monitoring.json  the newest look          OUT/monitoring.html  the same as a page

All of it stays where the scans are. The log counts patients and names none.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.data import manifest
from fedimaging.errors import DataError, ReleaseError, bad_value
from fedimaging.files import sha256_of, write_json
from fedimaging.release.drift import (
    ACT_RATE,
    WATCH_RATE,
    Drift,
    histogram_drift,
    judged,
    performance_drift,
    worst,
)
from fedimaging.release.features import INPUT_FEATURES
from fedimaging.release.opened import Release
from fedimaging.release.reference import image_scores
from fedimaging.results import Interval
from fedimaging.runs.assemble import primary_metric
from fedimaging.runs.worst import LOWER_IS_BETTER
from fedimaging.site.audit_log import AuditLog, read
from fedimaging.site.groups import NOT_STATED, columns_of, groups_of_rows
from fedimaging.training.bootstrap import interval
from fedimaging.training.metrics import classification_statistics

SCHEMA = "fedimaging monitoring 1"
LOG, TREE, PAGE = "monitoring.log", "monitoring.json", "monitoring.html"
_BATCH = 64


@dataclass(frozen=True)
class NewScans:
    """What a release makes of the scans of a manifest, one row each. `labels`: None where the manifest has none; -1 in a row
    whose label is blank."""

    patients: np.ndarray
    inputs: np.ndarray
    scores: np.ndarray
    uncalibrated: np.ndarray
    strangeness: np.ndarray
    labels: np.ndarray | None
    groups: Mapping[str, np.ndarray]


def look(release: Release, path: Path, out: Path) -> dict[str, Any]:
    """Compare the manifest's scans with the reference, write OUT and one line of its log; the tree of monitoring.json.

    Errors: DataError for a manifest or scan that cannot be used; RunError where `out` cannot be written; LedgerError for a log
    that was altered.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / LOG
    read(log)
    scans = read_scans(release, path)
    found = judged(compare(release, scans))
    level = worst([one.level for one in found])
    strange = scans.strangeness[np.isfinite(scans.strangeness)]
    facts = {"release_sha256": release.sha256, "manifest_sha256": sha256_of(path), "level": level,
             "n_patients": len(np.unique(scans.patients)), "n_scans": len(scans.patients)}
    tree = {
        "schema": SCHEMA, **facts, "name": release.study.name, "model_sha256": release.manifest["model_sha256"],
        "n_reference": release.reference["n_patients"], "minimum_count": release.reference["minimum_count"],
        "watch_rate": WATCH_RATE, "act_rate": ACT_RATE, "labelled": scans.labels is not None,
        "flagged": float((strange > release.flag_above).mean()) if len(strange) else None, "flag_above": release.flag_above,
        "drift": [_as_json(one) for one in found],
    }
    AuditLog(log).write("look", **facts, findings=[_short(one) for one in found if one.level != "none"])
    write_json(out / TREE, tree)
    _draw(out)
    return tree


def acknowledge(release: Release, path: Path, out: Path, *, who: str, why: str) -> dict[str, Any]:
    """Record that a named person saw the newest look of `out`, which must be at this release and manifest; its tree.

    Errors: ReleaseError where there is none, or a name or reason is blank; LedgerError for a log that was altered.
    """
    for name, text in (("acknowledge", who), ("reason", why)):
        if not text.strip() or not text.isprintable():
            rule = "must be one line that is not blank"
            raise ReleaseError(bad_value(f"--{name}", text, rule, "say who saw it, and what follows"))
    looks = [event for event in read(out / LOG) if event["event"] == "look"]
    wanted = {"release_sha256": release.sha256, "manifest_sha256": sha256_of(path)}
    if not looks or any(looks[-1][key] != value for key, value in wanted.items()):
        text = f"{str(out)!r} has no look at this release and manifest as its newest; look first, without --acknowledge."
        raise ReleaseError(text)
    AuditLog(out / LOG).write("acknowledged", who=who, why=why, level=looks[-1]["level"], look=looks[-1]["sequence"], **wanted)
    _draw(out)
    tree: dict[str, Any] = json.loads((out / TREE).read_text(encoding="utf-8"))
    return tree


def history(out: Path) -> list[dict[str, Any]]:
    """Every event of the log in OUT, verified, the oldest first. Error: LedgerError."""
    return read(out / LOG)


def as_lines(tree: Mapping[str, Any]) -> list[str]:
    """For the terminal: the level, and each finding."""
    lines = [f"level {tree['level']}: {tree['n_patients']} patients, {tree['n_scans']} scans, {len(tree['drift'])} comparisons"]
    if not tree["drift"]:
        lines.append("nothing could be compared: too few patients here or in the release; this is no sign that all is well")
    for one in tree["drift"]:
        if one["level"] != "none":
            where = f" ({one['group'][0]}: {one['group'][1]})" if one["group"] else ""
            size = "" if one["psi"] is None else f", stability index {one['psi']:.2f}"
            lines.append(f"{one['level']}: {one['what']} {one['name']}{where}: {one['before']:.3f} -> {one['after']:.3f}{size}, "
                         f"p {one['adjusted']:.4f}")
    return lines


def read_scans(release: Release, path: Path) -> NewScans:
    """Read every scan of a manifest, predict it, and keep numbers alone. Error: DataError naming line and file."""
    study = release.study
    table = manifest.read_table(path, study.data.columns)
    manifest.raise_first(table, manifest.problems_of(table, (), study.task.classes, False, needs_mask=False))
    labels, parts = _labels(release, table), []
    for first in range(0, len(table), _BATCH):
        images = np.stack([_image(release, table, row) for row in range(first, min(first + _BATCH, len(table)))])
        parts.append(release.predict(images))
    kind = study.task.kind
    patients = np.array(table.values["patient_id"])
    known = [name for name in release.reference["groups"] if all(one in table.values for one in columns_of(name))]
    bands = study.evaluation.age_bands
    return NewScans(
        patients, np.concatenate([one.inputs for one in parts]),
        np.concatenate([image_scores(one.probability, kind) for one in parts]),
        np.concatenate([image_scores(one.uncalibrated, kind) for one in parts]),
        np.concatenate([one.strangeness for one in parts]), labels,
        {name: groups_of_rows(table.values, patients, name, bands) for name in known},
    )


def compare(release: Release, scans: NewScans) -> list[Drift]:
    """Every comparison of which both sides have the minimum of patients: everybody, then group by group."""
    reference, least = release.reference, int(release.reference["minimum_count"])
    found = _of_group(release, scans, None, reference["overall"], reference["n_patients"], np.ones(len(scans.patients), bool),
                      reference["performance"].get("test") or {})
    for column, groups in reference["groups"].items():
        of_row = scans.groups.get(column)
        for value, one in groups.items() if of_row is not None else ():
            rows = of_row == value
            if value != NOT_STATED and len(np.unique(scans.patients[rows])) >= least:
                table = (reference["groups_performance"].get(column) or {}).get(value) or {}
                found += _of_group(release, scans, (column, value), one, one["n_patients"], rows, table)
    return found


def _of_group(
    release: Release, scans: NewScans, group: tuple[str, str] | None, reference: Mapping[str, Any], n_reference: int | None,
    rows: np.ndarray, performance: Mapping[str, Any],
) -> list[Drift]:
    names = release.class_names[1:] if release.study.task.kind == "binary" else release.class_names  # the other is its complement
    columns = [("input", name, scans.inputs[rows, k]) for k, name in enumerate(INPUT_FEATURES)]
    columns += [("scores", name, scans.scores[rows, release.class_names.index(name)]) for name in names]
    found = []
    for seed, (what, name, values) in enumerate(columns):
        kept = reference[what].get(name)
        if kept and len(kept["shares"]) > 1 and n_reference:
            found.append(histogram_drift(what, name, group, kept, n_reference, values, scans.patients[rows], seed=seed))
    metric = primary_metric(release.study)
    for name in dict.fromkeys((metric, "brier")):
        measured = _performance(release, scans, rows, name)
        if measured is None or (performance.get(name) or {}).get("value") is None:
            continue
        one = performance_drift(name, group, performance[name], measured, lower_is_better=name.startswith(LOWER_IS_BETTER))
        found += [one] if one else []
    return found


def _performance(release: Release, scans: NewScans, rows: np.ndarray, metric: str) -> Interval | None:
    """By the scores before calibration, as in the report of the run; None without labels."""
    if scans.labels is None:
        return None
    labelled = rows & ((scans.labels if scans.labels.ndim == 1 else scans.labels.min(1)) >= 0)
    study = release.study
    if len(np.unique(scans.patients[labelled])) < int(release.reference["minimum_count"]):
        return None
    statistic = classification_statistics(scans.uncalibrated[labelled], scans.labels[labelled], study.task.kind).get(metric)
    if statistic is None:
        return None
    point = float(statistic(np.ones((1, int(labelled.sum()))))[0])
    return interval(point, statistic, scans.patients[labelled], resamples=study.evaluation.resamples, seed=study.seed)


def _labels(release: Release, table: manifest.Table) -> np.ndarray | None:
    """(N,) or (N, L); blank is -1. None for a segmentation, or where a label column is missing. Error: DataError."""
    task = release.study.task
    if not task.columns or any(name not in table.values for name in task.columns):
        return None
    stated = [all(table.values[name][row] for name in task.columns) for row in range(len(table))]
    several = task.kind == "multilabel"
    kept = table.only(stated)
    manifest.raise_first(kept, manifest.problems_of(kept, task.columns, task.classes, several, needs_mask=False))
    labels = np.full((len(table), len(task.columns)), -1, np.int64)
    found = manifest.labels_of(kept, task.columns)
    if found is not None and any(stated):
        labels[np.array(stated)] = found
    return labels if several else labels[:, 0]


def _image(release: Release, table: manifest.Table, row: int) -> np.ndarray:
    try:
        return release.prepare(table.file("image", row))
    except DataError as error:
        raise DataError(f"{table.where(row)}: {error}") from error


def _as_json(one: Drift) -> dict[str, Any]:
    tree = asdict(one)
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in tree.items()}


def _short(one: Drift) -> dict[str, Any]:
    return {"what": one.what, "name": one.name, "group": one.group, "level": one.level, "adjusted": round(one.adjusted, 5),
            "before": round(one.before, 4), "after": round(one.after, 4)}


def _draw(out: Path) -> None:
    from fedimaging.release.monitor_page import write_monitor_page

    write_monitor_page(out / PAGE, json.loads((out / TREE).read_text(encoding="utf-8")), history(out))
