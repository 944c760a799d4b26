"""`fedimaging trace`: from one line of a log of predictions back to the model, its people, its study and its ledgers."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedimaging.errors import ReleaseError
from fedimaging.files import sha256_of
from fedimaging.release.verify import MANIFEST
from fedimaging.site.audit_log import read


def content_hash(path: Path) -> str:
    """sha256 of an image; of a folder (a DICOM series), over the names and contents of its files."""
    if not path.is_dir():
        return sha256_of(path)
    parts = [f"{file.name} {sha256_of(file)}\n" for file in sorted(path.iterdir()) if file.is_file()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def trace(folder: Path, manifest: Mapping[str, Any], log: Path, what: str) -> list[str]:
    """Where one prediction came from, in lines: the prediction, the model, its people, its study, its hospitals' ledgers.

    what: the number of a line of the log, or the path of an image. Errors: LedgerError for a log that was altered;
    ReleaseError where there is no such prediction, or another release made it.
    """
    events = read(log) if log.exists() else []
    number = _line_of(events, log, what)
    event = events[number - 1]
    own = sha256_of(folder / MANIFEST)
    if event.get("release_sha256") != own:
        raise ReleaseError(
            f"line {number} was predicted by another release (manifest {str(event.get('release_sha256'))[:16]}, model "
            f"{str(event.get('model_sha256'))[:16]}), not by this one ({own[:16]}); name that one."
        )
    return [*_prediction_lines(event, number, len(events)), *_model_lines(manifest), *_ledger_lines(manifest)]


def _line_of(events: Sequence[Mapping[str, Any]], log: Path, what: str) -> int:
    path = Path(what)
    if path.exists():
        digest = content_hash(path)
        lines = [number for number, event in enumerate(events, start=1) if event.get("image_sha256") == digest]
        if not lines:
            raise ReleaseError(f"{what} (sha256 {digest[:16]}) is not in {log}: this log has no prediction of it.")
        return lines[-1]
    if not (what.isascii() and what.isdigit() and 1 <= int(what) <= len(events)):
        raise ReleaseError(f"{what!r} is neither an image nor a line of {log}, which has {len(events)}.")
    return int(what)


def _prediction_lines(event: Mapping[str, Any], number: int, total: int) -> list[str]:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event["time"]))
    values = event.get("probabilities") or event.get("voxels") or {}
    shown = event.get("map")
    strange = "unknown" if event["strangeness"] is None else f"{event['strangeness']:.4f}"
    return [
        f"prediction: line {number} of {total}, {when}, the log is in order (its hash {event['hash']})",
        f"image: sha256 {event['image_sha256']}; strangeness {strange}{', FLAGGED' if event['flagged'] else ''}",
        f"said: {', '.join(f'{name} {value}' for name, value in values.items())}"
        + ("" if event.get("positive") is None else f"; positive: {event['positive']}"),
        *([f"map: {shown['method']}, for {shown['of'] or 'all classes'}, sha256 {shown['sha256']}"] if shown else []),
    ]


def _model_lines(manifest: Mapping[str, Any]) -> list[str]:
    passed = sum(c["passed"] for c in manifest["checks"])
    waived = [f"{c['name']}, waived by {c['waived_by']}: {c['waiver_reason']}" for c in manifest["checks"] if c.get("waived_by")]
    return [
        f"model: {manifest['model_sha256']}, every byte of its release verified (key {manifest['key_fingerprint']})",
        f"released by: {manifest['approved_by']} ({manifest['role']}), {manifest['created']}: {manifest['reason']}",
        f"checks: {passed} of {len(manifest['checks'])} passed; {'; '.join(waived) or 'none waived'}",
        f"study: {manifest['name']}, fingerprint {manifest['study_fingerprint']}, data {manifest['data_fingerprint']}",
    ]


def _ledger_lines(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest["ledgers"]:
        return ["ledgers: none; the model was trained without differential privacy"]
    ledgers = manifest["ledgers"].items()
    return [f"ledger of {name}: {one['events']} events, head {one['head']}; {_spent(one)}" for name, one in ledgers]


def _spent(one: Mapping[str, Any]) -> str:
    if one["epsilon"] is None:
        return "no epsilon"
    return f"epsilon {one['epsilon']:.4f} at delta {one['delta']:g} per {one['unit']}"
