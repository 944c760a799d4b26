"""`fedimaging site check`: would this hospital train if the server asked now? Nothing leaves, and nothing is charged.

Each approved study is tried with one real step on the real data; its result is thrown away, so that there is nothing to
charge.
"""

import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fedimaging.data.manifest import problems_of, raise_first, read_table
from fedimaging.errors import FedimagingError
from fedimaging.keys import fingerprint, read_private, read_public
from fedimaging.models.zoo import MODELS
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.noise import SecureNoise
from fedimaging.site.approvals import Approval, approved
from fedimaging.site.check_machine import check_machine
from fedimaging.site.finding import Finding
from fedimaging.site.folder import SiteFolder
from fedimaging.site.own_data import OwnData, prepare_own
from fedimaging.site.proposal import spending_of
from fedimaging.site.record import Record, read_record, rounded_up
from fedimaging.site.rules import against
from fedimaging.site.simulated import shared_workbench
from fedimaging.study.schema import Study
from fedimaging.training.local import train_locally

Probe = Callable[[SiteFolder], Finding]
"""Asks the server whether it knows this hospital's key."""


def check(path: Path, probe: Probe) -> list[Finding]:
    """Every finding, in the order in which a person would mend them."""
    try:
        folder = SiteFolder.open(path)
    except FedimagingError as error:
        return [Finding("site folder", False, str(error))]
    found = [Finding("site folder", True, f"{folder.settings.name}, in {folder.path}")]
    found += _key(folder)
    found += check_machine(folder)
    if all(finding.ok is not False for finding in found if finding.what in ("key", "authority", "server", "clock")):
        found.append(probe(folder))
    else:
        found.append(Finding("registered", None, "the server was not asked"))
    record = read_record(folder)
    found += [Finding(verdict.what, verdict.ok, verdict.text) for verdict in record.verdicts]
    found += _budget(record)
    found += _manifest(folder)
    found += _studies(folder, record)
    return found


def _key(folder: SiteFolder) -> Iterator[Finding]:
    try:
        read_private(folder.key_file)
        known = fingerprint(read_public(folder.public_key_file))
    except FedimagingError as error:
        yield Finding("key", False, str(error))
        return
    mode = stat.S_IMODE(folder.key_file.stat().st_mode)
    if mode & 0o077:
        yield Finding("key", False, f"{folder.key_file} can be read by others (mode {mode:o}); chmod 600 it")
        return
    yield Finding("key", True, f"fingerprint {known}")


def _budget(record: Record) -> Iterator[Finding]:
    for one in record.spent:
        text = f"epsilon {rounded_up(one.epsilon)} of {one.budget.epsilon:g} is spent {one.span} (delta {one.budget.delta:g})"
        yield Finding("budget", one.epsilon < one.budget.epsilon, text)


def _manifest(folder: SiteFolder) -> Iterator[Finding]:
    """The manifest as far as no study is needed to read it, and the rules that hang on how many patients there are."""
    settings, patients = folder.settings, 0
    try:
        table = read_table(folder.manifest, settings.data.columns)
        raise_first(table, problems_of(table, (), 2, False, needs_mask=False))
        listed = folder.opt_out
        there = set(table.values["patient_id"])
        patients = len(there)
        declared = f"; {settings.declared_patients} are declared to the public" if settings.declared_patients else ""
        known = f"; {len(listed)} on the opt-out list, {len(listed & there)} of them in the manifest" if listed else ""
        yield Finding("manifest", True, f"{folder.manifest}: {len(table)} scans of {patients} patients{declared}{known}")
    except FedimagingError as error:
        yield Finding("manifest", False, str(error))
    yield _policy(folder, patients)


def _policy(folder: SiteFolder, patients: int) -> Finding:
    """Rules that stand in each other's way, or that nobody can have meant."""
    policy, told = folder.policy, []
    for name, limit in (("in_total", policy.in_total), ("per_year", policy.per_year)):
        if limit.delta * patients >= 1:
            told.append(f"{name}.delta={limit.delta:g} is not below one over the {patients} patients")
    if policy.per_year.epsilon > policy.in_total.epsilon:
        told.append("per_year.epsilon is above in_total.epsilon, and so never holds anybody back")
    told += [f"models: {name!r} is no network of this version" for name in policy.models or () if name not in MODELS]
    if told:
        return Finding("policy", False, "; ".join(told))
    if policy.allow_simulated_noise:
        return Finding("policy", None, "TEST MODE: allow_simulated_noise is true, so the noise protects nobody")
    return Finding("policy", True, "makes sense")


def _studies(folder: SiteFolder, record: Record) -> Iterator[Finding]:
    standing = [approval for approval in record.studies.values() if approval.approved]
    if not standing:
        yield Finding("studies", False, "none is approved; `fedimaging site approve` shows one and asks")
        return
    yield Finding("studies", True, f"{len(standing)} approved: {', '.join(approval.name for approval in standing)}")
    for approval in standing:
        try:
            yield from _one_study(folder, approval)
        except FedimagingError as error:
            yield Finding(approval.name, False, str(error))


def _one_study(folder: SiteFolder, approval: Approval) -> Iterator[Finding]:
    _, study = approved(folder, approval.study)
    data = prepare_own(folder, study)
    yield _counts(approval.name, study, data)
    plan = None if approval.plan is None else DpPlan(**approval.plan)
    patients = data.training.n_patients if data.rows.trains else None
    reasons = [*against(folder.policy, study, plan, patients), *spending_of(folder.ledger(), folder.policy, study, plan)[1]]
    yield Finding(approval.name, not reasons, "; ".join(reasons) or "within the policy and what is left of the budgets")
    yield _dry_run(folder, approval.name, study, data, plan)


def _counts(name: str, study: Study, data: OwnData) -> Finding:
    rows, cohort = data.rows, data.rows.cohort
    text = f"{data.training.n_patients} patients train, {data.testing.n_patients} test, {len(data.dataset)} scans"
    few = False
    columns: list[list[int]] = [] if rows.labels is None else rows.labels.T.tolist()
    for label, values in zip(study.task.columns, columns, strict=False):
        mix = Counter(values)
        few = few or len(mix) < 2
        text += f"; {label}: {', '.join(f'{value} on {number}' for value, number in sorted(mix.items()))} scans"
    text += f"; left out: {len(cohort.opted_out)} opted out, {len(cohort.without_consent)} without consent"
    return Finding(f"data of {name}", None if few else True, text + ("; ONE LABEL ONLY" if few else ""))


class _Enough(Exception):
    """One step was taken."""


def _dry_run(folder: SiteFolder, name: str, study: Study, data: OwnData, plan: DpPlan | None) -> Finding:
    """One step of the real training, on the real data and device; what comes out is thrown away."""
    what = f"one step of {name}"
    if not data.rows.trains:
        return Finding(what, True, "not needed: this hospital only tests")
    bench = shared_workbench(study, folder.settings.device)
    data, began = data.seen_by(bench), time.monotonic()

    def stop(steps: int, progress: object) -> None:
        raise _Enough

    try:
        noise = SecureNoise() if plan else None
        train_locally(bench, bench.initial, data.training, plan, noise, key="check", round=1, after_step=stop)
    except _Enough:
        seconds = time.monotonic() - began
    except FedimagingError as error:
        return Finding(what, False, str(error))
    except (RuntimeError, MemoryError) as error:  # PyTorch's: out of memory, an operation that a device does not have
        return Finding(what, False, f"failed: {' '.join(str(error).split())[:300]}")
    finite = bool(np.isfinite(bench.vector()).all())
    steps = f", of {plan.steps_per_round} in a round" if plan else ""
    text = f"took {seconds:.2g} s on {bench.device.type}{steps}; thrown away, nothing left and nothing was charged"
    return Finding(what, finite, text if finite else "gave numbers that are not finite")
