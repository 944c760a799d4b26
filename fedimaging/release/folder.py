"""The release folder, written whole or not at all, and signed.

    manifest.json   the hash of every other file, who released it and why, the checks, the ledgers' heads
    manifest.sig    Ed25519 signature (hex) over the bytes of manifest.json
    study.yaml      the study without the paths of a machine     bundle/          MONAI bundle: network, configuration, code
    reference.json  aggregates that monitoring compares with     calibration.json where probabilities are calibrated
    card.md, card.html   the model card                          operating_point.json  where the study chose one
"""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedimaging.errors import ReleaseError
from fedimaging.files import disk_fault, sha256_of, write_json, write_text
from fedimaging.privacy.ledger_verify import verify as verify_ledger
from fedimaging.release import card as cards
from fedimaging.release.bundle import write_bundle
from fedimaging.release.card import People
from fedimaging.release.cells import Counting
from fedimaging.release.checks import Check, checks_of, judged
from fedimaging.release.export import export
from fedimaging.release.reference import reference_of, shown_table
from fedimaging.release.signing import key_fingerprint, public_text
from fedimaging.release.source import Source, open_run
from fedimaging.release.verify import MANIFEST, MODEL, SCHEMA, SIGNATURE
from fedimaging.runs import machine
from fedimaging.runs.groups import TOO_FEW
from fedimaging.study.schema import Study

NOT_RELEASED = "not-released"


def release(run: Path, people: People, key: Ed25519PrivateKey, waivers: Mapping[str, str], out: Path | None = None) -> Path:
    """Check the run, write its release folder (default: RUN/release) and sign it; returns the folder.

    Errors: ReleaseError where a check fails that is not waived, or the folder exists; any of reading the run. Nothing is left
    behind by a release that was refused.
    """
    for name, text in vars(people).items():
        if not text.strip():
            raise ReleaseError(f"--{name.replace('_', '-')} is blank; a release needs a person, a role and a reason.")
    source = open_run(run)
    checks = judged(checks_of(source), waivers, people.approved_by)
    folder = (out or source.run / "release").resolve()
    if folder.exists():
        raise ReleaseError(f"{str(folder)!r} exists already; a release is never overwritten: choose another --out.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ReleaseError(disk_fault(folder, error)) from error
    try:
        _write(part, source, people, key, checks)
        part.chmod(0o755)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write(part: Path, source: Source, people: People, key: Ed25519PrivateKey, checks: list[Check]) -> None:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    counting = Counting.over(source.limits.minimum_count, _cells(source))
    study = public_study(source.study)
    write_text(part / "study.yaml", _STUDY_HEAD + yaml.safe_dump(study, sort_keys=False, allow_unicode=True))
    compared = export(source.bench.model, source.dataset.images[source.test_rows()[:16]], part / "bundle" / "models")
    figures = {name: one["value"] for name, one in shown_table(source.report.get("test") or {}, counting).items()}
    write_bundle(part / "bundle", source.study, study["data"], _calibration(source), {
        "created": created, "approved_by": people.approved_by, "intended_use": source.limits.intended_use, "figures": figures,
    })
    write_json(part / "reference.json", reference_of(source, counting))
    for name, tree in (("calibration", _calibration(source)), ("operating_point", _operating_point(source))):
        if tree is not None:
            write_json(part / f"{name}.json", tree)
    facts = {
        "model_sha256": sha256_of(part / MODEL), "run_weights_sha256": source.weights_sha256, "export": compared,
        "study_fingerprint": source.study.fingerprint, "data_fingerprint": source.dataset.fingerprint, "created": created,
        **vars(people), "checks": [check.as_json() for check in checks], "ledgers": _ledgers(source),
        "public_key": public_text(key.public_key()), "key_fingerprint": key_fingerprint(key.public_key()),
        "versions": machine.versions(),
    }
    card = cards.make_card(source, people, checks, counting, facts)
    write_text(part / "card.md", cards.as_markdown(card))
    write_text(part / "card.html", cards.as_html(card))
    files = {path.relative_to(part).as_posix(): sha256_of(path) for path in sorted(part.rglob("*")) if path.is_file()}
    write_json(part / MANIFEST, {"schema": SCHEMA, "name": source.study.name, "files": files, **facts})
    write_text(part / SIGNATURE, key.sign((part / MANIFEST).read_bytes()).hex() + "\n")


_STUDY_HEAD = """\
# The study of this release, without the paths of the machines it ran on: its fingerprint, which is over the whole study,
# stands in manifest.json.
"""


def public_study(study: Study) -> dict[str, Any]:
    """The study as a tree that loads, without what names files of a machine (`data.path`, `data.root`, `model.weights`) or
    is a machine's own (`runtime`)."""
    tree: dict[str, Any] = study.model_dump(mode="json", exclude={"runtime": True, "data": {"root"}})
    if tree["data"]["path"] is not None:
        tree["data"]["path"] = NOT_RELEASED
    if tree["model"]["weights"] is not None:
        tree["model"]["weights"] = NOT_RELEASED
    return tree


def _calibration(source: Source) -> dict[str, Any] | None:
    return None if source.calibration is None else dict(source.calibration)


def _operating_point(source: Source) -> dict[str, Any] | None:
    """The threshold that the study chose, on scores before calibration; without the figures it was judged by."""
    found = source.report.get("operating_point") or {}
    if found.get("threshold") is None:
        return None
    return {"scores": "uncalibrated", **{key: found.get(key) for key in ("aim", "target", "threshold", "from")}}


def _ledgers(source: Source) -> dict[str, Any]:
    """What a prediction is traced to: each ledger's last event, and what was spent by it."""
    found = {}
    for name, site in source.sites(held_out=False).items():
        if not source.ledger(name).exists():
            continue
        last = verify_ledger(source.ledger(name)).last
        spent = site.get("privacy") or {}
        found[name] = {
            "events": last.seq, "head": last.hash, "last": last.time,
            **{key: spent.get(key) for key in ("unit", "epsilon", "delta", "accountant", "noise")},
        }
    return found


def _cells(source: Source) -> list[int]:
    """Every count of patients that a card could show."""
    sites = source.report["sites"].values()
    counts = [int(site.get(key) or 0) for site in sites for key in ("patients", "test_patients")]
    metric = source.metric
    for groups in (source.report.get("groups") or {}).values():
        for name, table in groups.items():
            one = table if name == TOO_FEW else table.get(metric) or {}
            counts.append(int(one.get("n_patients") or 0))
    return counts
