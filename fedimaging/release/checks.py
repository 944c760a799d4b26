"""What a run must show before it may be released: figures against the limits that its study set, and what always holds.

A check that the study set can be waived, by name and with a reason, and the waiver stands on the model card for ever.
What always holds (the run is whole, its ledgers are in order, its claim can be computed) cannot be waived.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedimaging.errors import FedimagingError, LedgerError, ReleaseError, unknown_name
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.ledger_verify import verify
from fedimaging.release.source import Source

NOT_MEASURED = "not measured"
_SAME_EPSILON = 1e-6  # of the same charges, computed again


@dataclass(frozen=True)
class Check:
    """One check. `limit`, `value`: figures, or words; `rule`: how they compare, for a reader. `waived_by`, `waiver_reason`:
    who let it pass although it failed, and why."""

    name: str
    rule: str
    limit: float | str
    value: float | str
    passed: bool
    may_be_waived: bool = True
    waived_by: str | None = None
    waiver_reason: str | None = None

    @property
    def holds(self) -> bool:
        """Passed, or waived."""
        return self.passed or self.waived_by is not None

    @property
    def words(self) -> str:
        """`external: 0.81 is not at least 0.90 (AUROC at held-out hospitals)`."""
        return f"{self.name}: {_text(self.value)} {'is' if self.passed else 'is not'} {_text(self.limit)} ({self.rule})"

    def as_json(self) -> dict[str, Any]:
        """As the manifest and the card hold it."""
        tree = {"name": self.name, "rule": self.rule, "limit": self.limit, "value": self.value, "passed": self.passed}
        waiver = {"waived_by": self.waived_by, "waiver_reason": self.waiver_reason} if self.waived_by else {}
        return tree | waiver


def checks_of(source: Source) -> list[Check]:
    """All checks of a run: those that always hold, then those that its study set."""
    always = [_finished(source), _fingerprints(source), _whole(source), _ledgers(source), _claim(source)]
    return [replace(check, may_be_waived=False) for check in always] + _set_by_the_study(source)


def judged(checks: Sequence[Check], waivers: Mapping[str, str], approved_by: str) -> list[Check]:
    """The checks, with what is waived (name -> reason).

    Error: ReleaseError for a waiver of no check of this run, of one that passed or may not be waived, or without a reason;
    and, listing every one with figure and limit, where a check fails that is not waived.
    """
    known = {check.name: check for check in checks}
    for name, reason in waivers.items():
        if name not in known:
            raise ReleaseError(unknown_name("--waive", name, [check.name for check in checks if check.may_be_waived]))
        if not known[name].may_be_waived:
            raise ReleaseError(f"--waive {name}: this check cannot be waived; {known[name].words}.")
        if known[name].passed:
            raise ReleaseError(f"--waive {name}: the check passed ({known[name].words}); leave the waiver out.")
        if not reason.strip():
            raise ReleaseError(f"--waive {name}: a waiver needs a reason; give --waive {name}='why'.")
    done = [replace(c, waived_by=approved_by, waiver_reason=waivers[c.name].strip()) if c.name in waivers else c for c in checks]
    failed = [check for check in done if not check.holds]
    if failed:
        lines = "".join(f"\n  {check.words}" for check in failed)
        hint = " Waive one that the study set with --waive NAME=REASON." if any(c.may_be_waived for c in failed) else ""
        number = "one check fails" if len(failed) == 1 else f"{len(failed)} checks fail"
        raise ReleaseError(f"not released, {number}:{lines}\nNothing was written.{hint}")
    return done


def parse_waivers(given: Iterable[str]) -> dict[str, str]:
    """`NAME=REASON` texts as a mapping. Error: ReleaseError."""
    waivers: dict[str, str] = {}
    for text in given:
        name, equals, reason = text.partition("=")
        if not equals or name in waivers:
            raise ReleaseError(f"--waive {text!r} is not of the form NAME=REASON, or names a check twice.")
        waivers[name.strip()] = reason
    return waivers


def _finished(source: Source) -> Check:
    done, asked = len(source.report.get("rounds") or ()), source.study.federation.rounds
    if not source.report.get("test"):
        return Check("finished", "rounds run, and test patients", asked, "no test patient: nothing was measured", False)
    return Check("finished", "rounds of the study that were run", asked, done, done == asked)


def _fingerprints(source: Source) -> Check:
    agree = {
        "study": source.report.get("fingerprint") == source.study.fingerprint == source.federation.study.fingerprint,
        "data": source.report.get("data_fingerprint") == source.dataset.fingerprint,
    }
    wrong = [name for name, same in agree.items() if not same]
    value = f"another {' and other '.join(wrong)}" if wrong else "the same"
    return Check("fingerprints", "study and data are those of the report", "the same", value, not wrong)


def _whole(source: Source) -> Check:
    kept = source.study.federation.local_parameters
    value = "whole" if kept == "none" else f"without its {kept} layers, which stay at the hospitals"
    return Check("model", "every layer of the model left the hospitals", "whole", value, kept == "none")


def _ledgers(source: Source) -> Check:
    private, faults, found = source.study.privacy is not None, [], 0
    for name in source.report["sites"]:
        needed = private and name in source.federation.train_names
        if not (needed or source.ledger(name).exists()):
            continue
        found += 1
        try:
            verify(source.ledger(name))
        except LedgerError as error:
            faults.append(f"{name}: {error}")
    value = "; ".join(faults) or (f"{found} in order" if found else "no ledger: nothing was charged")
    return Check("ledgers", "every hospital's ledger, verified now", "in order", value, not faults)


def _claim(source: Source) -> Check:
    rule = "epsilon of every training hospital, computed now from its ledger"
    if source.study.privacy is None:
        return Check("privacy_claim", rule, "as reported", "no differential privacy is claimed", True)
    faults, largest = [], 0.0
    for name, site in source.sites(held_out=False).items():
        told = site.get("privacy") or {}
        try:
            found = epsilon(verify(source.ledger(name)).charges(), float(told["delta"]))
        except (FedimagingError, KeyError, TypeError, ValueError) as error:
            faults.append(f"{name}: cannot be computed ({type(error).__name__})")
            continue
        largest = max(largest, found)
        if not math.isfinite(found):
            faults.append(f"{name}: without limit")
        elif not math.isclose(found, float(told["epsilon"]), rel_tol=_SAME_EPSILON):
            faults.append(f"{name}: the ledger says {found:.4f}, the report {float(told['epsilon']):.4f}")
    return Check("privacy_claim", rule, "as reported", "; ".join(faults) or f"at most {largest:.4f}", not faults)


def _set_by_the_study(source: Source) -> list[Check]:
    limits, metric, found = source.limits, source.metric, []
    if limits.minimum_external is not None:
        value = worst_external(source.report, metric, limits.minimum_count)
        found.append(_at_least("external", f"{metric} at hospitals that never trained", limits.minimum_external, value))
    if limits.largest_subgroup_gap is not None:
        rule = f"largest difference of {metric} between groups"
        found.append(_at_most("subgroup_gap", rule, limits.largest_subgroup_gap, largest_gap(source.report)))
    if limits.largest_calibration_error is not None:
        value = calibration_error(source.report)
        rule = "expected calibration error on test patients"
        found.append(_at_most("calibration_error", rule, limits.largest_calibration_error, value))
    return [*found, *_audit(source)]


def worst_external(report: Mapping[str, Any], metric: str, least: int) -> float | None:
    """The lowest of: the metric over all held-out hospitals together; and at each hospital that a model trained without it
    was tested on. Where there are fewer than `least` test patients it does not count. None where nothing was measured."""
    left_out = (report.get("leave_one_out") or {}).get("hospitals") or {}
    tables = [(report.get("held_out") or {}).get(metric), *(row.get("external") for row in left_out.values())]
    found = [one for one in tables if one and one["value"] is not None and one["n_patients"] >= least]
    return min((float(one["value"]) for one in found), default=None)


def largest_gap(report: Mapping[str, Any]) -> float | None:
    """Over the columns of `group_gaps`; None where no column has two groups to compare."""
    gaps = [gap["value"] for gap in (report.get("group_gaps") or {}).values() if gap and gap.get("value") is not None]
    return max((abs(float(gap)) for gap in gaps), default=None)


def calibration_error(report: Mapping[str, Any]) -> float | None:
    """ECE over the training hospitals' test patients, after calibration where the model is calibrated; None: not measured."""
    tables = report.get("calibration") or {}
    found = ((tables.get("after") or tables.get("before") or {}).get("test") or {}).get("ece") or {}
    return None if found.get("value") is None else float(found["value"])


def _audit(source: Source) -> list[Check]:
    required = source.limits.audit == "required"
    if source.audit is None and not required:
        return []
    ours = source.audit is not None and source.audit.get("run") == source.study.fingerprint
    verdict = str(source.audit.get("verdict")) if source.audit is not None and ours else NOT_MEASURED
    good = ("consistent", "no claim") if required else ("consistent", "no claim", "inconclusive")
    return [Check("audit", "verdict of the attacks on this run", " or ".join(good), verdict, verdict in good)]


def _at_least(name: str, rule: str, limit: float, value: float | None) -> Check:
    passed = value is not None and value >= limit
    return Check(name, rule + "; at least the limit", limit, NOT_MEASURED if value is None else value, passed)


def _at_most(name: str, rule: str, limit: float, value: float | None) -> Check:
    passed = value is not None and value <= limit
    return Check(name, rule + "; at most the limit", limit, NOT_MEASURED if value is None else value, passed)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}" if float(value).is_integer() else f"{value:.4f}"
