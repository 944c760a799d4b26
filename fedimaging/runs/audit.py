"""`fedimaging audit`: attack a finished run, and say whether it keeps its promise.

The verdict of every attack is one of: violation (it found more than the guarantee allows, at a confidence that pays for all
verdicts of the audit together), inconclusive (it could not have found a violation), consistent (which is no proof), and
"no claim" for a study without privacy. Shadows and re-runs work in RUN/audit; the run's own files stay as they are.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedimaging.files import held, write_json
from fedimaging.runs import machine
from fedimaging.runs.audit_canaries import audit_one_run
from fedimaging.runs.audit_entry import Entry, worst
from fedimaging.runs.audit_inversion import audit_inversions
from fedimaging.runs.audit_mechanism import audit_white_box
from fedimaging.runs.audit_membership import audit_membership
from fedimaging.runs.audit_options import AuditOptions
from fedimaging.runs.audit_page import write_audit_page
from fedimaging.runs.audit_target import Target, open_target
from fedimaging.runs.audit_updates import audit_reproduction, audit_updates, rerun

SCHEMA = "fedimaging-audit/1"
FAMILY_CONFIDENCE = 0.95
_RATES = 2  # each membership attack is judged at two false positive rates


def audit(run: Path, options: AuditOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Attack the finished run in folder `run`; writes and returns the tree of RUN/audit.json, and writes RUN/audit.html.

    Deterministic for a run and options but for `created` and `seconds`. After a kill, shadows and re-runs that were finished
    are not done again. Errors: RunError for anything but a finished run of `fedimaging simulate`; any other of a run.
    """
    began = time.monotonic()
    target = open_target(run)
    target.folder.mkdir(exist_ok=True)
    with held(target.folder / ".lock", f"{str(run)!r} is being audited by another process; wait for it."):
        attacks = _attacks(target, options, confidence := each_confidence(target, options), say)
    tree = {
        "schema": SCHEMA, "run": target.study.fingerprint, "name": target.study.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": machine.versions(),
        "options": vars(options) | {"attacks": list(options.attacks)},
        "confidence": {"family": FAMILY_CONFIDENCE, "each": confidence},
        "verdict": worst([line["verdict"] for line in attacks]), "attacks": attacks,
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(target.run / "audit.json", tree)
    write_audit_page(target.run)
    return tree


def each_confidence(target: Target, options: AuditOptions) -> float:
    """The confidence of one verdict such that a false alarm anywhere in the audit has at most 5 % (Bonferroni)."""
    units = 2 if target.unit == "record" else 1
    judged = 0
    if "membership" in options.attacks:
        judged += units * _RATES * (2 * (2 if options.shadows > 2 else 1) + 1)
    if "canaries" in options.attacks:
        judged += 2 + 1  # the one-run bound, the rates; the white-box step
    if "inversion" in options.attacks:
        judged += 2
    return 1 - (1 - FAMILY_CONFIDENCE) / judged


def headline(tree: dict[str, Any]) -> list[str]:
    """One line an attack, then the verdict, for the terminal."""
    said = [f"{a['name']} ({a['target']}, per {a['unit']}): {a['verdict']}. {a['why']}" for a in tree["attacks"]]
    return [*said, f"verdict: {tree['verdict']}"]


def _attacks(target: Target, options: AuditOptions, confidence: float, say: Callable[[str], None]) -> list[Entry]:
    found: list[Entry] = []
    private = target.study.privacy is not None
    if "membership" in options.attacks:
        found += audit_membership(target, options, confidence, say)
    if "membership" in options.attacks or ("canaries" in options.attacks and private):
        seen = rerun(target, say, watch="membership" in options.attacks)
        if "membership" in options.attacks:
            found += audit_updates(target, seen, confidence)
        found.append(audit_reproduction(target, seen))
    if "canaries" in options.attacks and private:
        found.append(audit_one_run(target, options, confidence, say))
        found.append(audit_white_box(target, confidence))
        say("one private step is audited.")
    if "inversion" in options.attacks:
        found += audit_inversions(target, confidence, say)
    return found
