"""What a study would do at this hospital, in plain words, for the person who decides; and every reason against it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedimaging.errors import PrivacyError, SiteError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.ledger import Ledger
from fedimaging.site.approvals import record
from fedimaging.site.final_parts import final_charges
from fedimaging.site.folder import SiteFolder
from fedimaging.site.own_data import OwnRows, read_own
from fedimaging.site.personal import RELEASES
from fedimaging.site.plan import charges_of, private_plan
from fedimaging.site.policy import SitePolicy
from fedimaging.site.record import rounded_up
from fedimaging.site.rules import against
from fedimaging.site.simulated import shared_workbench
from fedimaging.study.load import load
from fedimaging.study.schema import Study

EVALUATION_WORDS = {
    "none": "of evaluations, nothing",
    "coarsened": "of evaluations, metrics rounded to {step:g} (not private in the strict sense)",
    "noised": "of evaluations, counts with noise {noise:g}, charged to the budget",
    "metrics": "of evaluations, exact metrics and the number of test patients, without noise",
    "scores": "of evaluations, the scores of every scan",
}


CALIBRATION_WORDS = {
    "none": "for the calibration it asks for, nothing",
    "noised": "once, for the calibration, nine sums over validation patients with noise {noise:g}, charged to the budget",
    "exact": "once, for the calibration, nine exact sums over validation patients, without noise",
}
GROUP_WORDS = {
    "none": "of groups of test patients, nothing",
    "noised": "of groups of test patients, once, counts with noise {noise:g}, charged to the budget",
    "metrics": "of groups of test patients, once, exact metrics where each answer has {least} patients or more, without noise",
}


@dataclass(frozen=True)
class Spending:
    """Epsilon under one budget: `before` the study, `after` all its rounds that are left, and what is `allowed`."""

    budget: Budget
    before: float
    after: float

    @property
    def span(self) -> str:
        """Over what time, in words."""
        return "in total" if self.budget.days is None else f"in any {self.budget.days} days"


@dataclass(frozen=True)
class Proposal:
    """A study as this hospital would take part in it. `parameters`: numbers that travel; `reasons`: why it can't."""

    study: Study
    content: bytes
    policy: SitePolicy
    rows: OwnRows
    plan: DpPlan | None
    parameters: int
    spending: tuple[Spending, ...]
    reasons: tuple[str, ...]

    def lines(self) -> list[str]:
        """The whole of it for a terminal."""
        pairs = [*_subject(self), *_training(self), *_privacy(self), *_leaves(self)]
        width = max(len(name) for name, _ in pairs)
        said = (f"{name.ljust(width)}  {text}" for name, text in pairs)
        return ["".join(c if c.isprintable() else "?" for c in line) for line in said]  # a study's words may hold control codes


def propose(folder: SiteFolder, path: Path) -> Proposal:
    """Read a study file, this hospital's manifest, policy and ledger; build the model; look for reasons against.

    Errors: StudyError, DataError, SiteError, PrivacyError, LedgerError for what cannot even be looked at.
    """
    study, policy = load(path), folder.policy
    rows = read_own(folder, study)
    training = rows.patient_ids[rows.training]
    if rows.trains and not len(training):
        raise SiteError("this hospital is to train, but none of its patients is in the training part of the data.")
    plan = private_plan(study, training) if study.privacy is not None and rows.trains else None
    parameters = shared_workbench(study, "cpu").shared_size
    spending, faults = spending_of(folder.ledger(), policy, study, plan)
    patients = len(set(training.tolist())) if rows.trains else None
    reasons = [*_only_simulated(study), *against(policy, study, plan, patients), *faults]
    return Proposal(study, path.read_bytes(), policy, rows, plan, parameters, spending, tuple(reasons))


def approve(folder: SiteFolder, proposal: Proposal, *, who: str, why: str) -> None:
    """Record that the study is approved. Error: SiteError, with every reason, where the policy does not allow it."""
    if proposal.reasons:
        raise SiteError(f"study {proposal.study.name!r} is against this hospital's policy: {'; '.join(proposal.reasons)}.")
    record(
        folder, proposal.study, proposal.content, who=who, why=why, plan=proposal.plan, parameters=proposal.parameters
    )


def _only_simulated(study: Study) -> list[str]:
    if study.privacy is None or study.privacy.secure_sum == "none":
        return []
    return [f"privacy.secure_sum={study.privacy.secure_sum} leaves out a part of the noise, which only a simulation may assume"]


def spending_of(
    ledger: Ledger, policy: SitePolicy, study: Study, plan: DpPlan | None
) -> tuple[tuple[Spending, ...], list[str]]:
    """What the study's rounds that are left would spend under each budget; and every reason why they may not."""
    rounds = study.federation.rounds
    done = min(_rounds_charged(ledger, study.fingerprint), rounds)
    new = charges_of(
        study, plan, rounds, policy.evaluation_noise, policy.calibration_noise, after=done,
        final_parts=final_charges(study, policy),
    )
    try:
        spending = tuple(_one(ledger.charges(budget.days), new, budget) for budget in policy.budgets())
    except PrivacyError as error:  # charges of patients and of records that cannot be added up
        return (), [str(error).rstrip(".")]
    return spending, [_over(one) for one in spending if new and not one.after <= one.budget.epsilon]


def _rounds_charged(ledger: Ledger, fingerprint: str) -> int:
    """The last round of this study that the ledger holds."""
    facts = (row.facts for row in ledger.rows() if row.kind == "reserved")
    return max((int(one["round"]) for one in facts if one["study"] == fingerprint), default=0)


def _one(spent: Sequence[Charge], new: Sequence[Charge], budget: Budget) -> Spending:
    return Spending(budget, epsilon(spent, budget.delta), epsilon([*spent, *new], budget.delta))


def _over(spending: Spending) -> str:
    return (
        f"epsilon would be {rounded_up(spending.after)} {spending.span} (delta {spending.budget.delta:g}), "
        f"above the {spending.budget.epsilon:g} allowed"
    )


def _subject(proposal: Proposal) -> Iterator[tuple[str, str]]:
    study, task = proposal.study, proposal.study.task
    yield "Study", f"{study.name}, fingerprint {study.fingerprint}"
    what = ", ".join(task.columns) or "the mask"
    names = f" ({', '.join(task.class_names)})" if task.class_names else ""
    shape = " x ".join(map(str, study.data.image_size))
    yield "Learns", f"{task.kind}: {what}{names}, from scans of {shape} with {study.data.channels} channel(s)"
    size = proposal.parameters * 4
    words = f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"
    yield "Model", f"{study.model.name}, {proposal.parameters:,} numbers that travel ({words} a round, each way)"
    tested = f"; {', '.join(sorted(study.hospitals.held_out))} only tests" if study.hospitals.held_out else ""
    trained = ", ".join(study.hospitals.training_sites)
    yield "Hospitals", f"{trained} train{tested}; a round needs the updates of {study.federation.minimum_replies}"


def _training(proposal: Proposal) -> Iterator[tuple[str, str]]:
    rows, plan, federation = proposal.rows, proposal.plan, proposal.study.federation
    cohort = rows.cohort
    left = f"; left out: {len(cohort.opted_out)} opted out, {len(cohort.without_consent)} without consent"
    counts = f"{_patients(rows, rows.training)} train, {_patients(rows, rows.testing)} test"
    yield "Patients", counts + (left if cohort.left_out else "")
    if not rows.trains:
        yield "Role", "this hospital only tests the models; it trains nothing"
    elif plan is None:
        epochs, steps = proposal.study.training.local_epochs, proposal.study.training.local_steps
        yield "Rounds", f"{federation.rounds}, of {f'{epochs:g} epochs' if epochs else f'{steps} steps'} each"
    else:
        drawn = f"a step draws {plan.denominator:.3g} {plan.unit}s on average"
        yield "Rounds", f"{federation.rounds}, of {plan.steps_per_round} step(s) each; {drawn}"


def _patients(rows: OwnRows, places: np.ndarray) -> int:
    return len(set(rows.patient_ids[places].tolist()))


def _privacy(proposal: Proposal) -> Iterator[tuple[str, str]]:
    plan = proposal.plan
    if plan is not None:
        unit = "each patient, with all their scans," if plan.unit == "patient" else "each single scan (weaker)"
        yield "Privacy", f"{unit} counts as one; clipped at {plan.clip_norm:g}, noise multiplier {plan.noise_multiplier:.4g}"
        if proposal.study.training.balance is not None:
            column, rate = proposal.study.training.balance.column, plan.sample_rate
            yield "Sampling", f"groups of {column!r} are drawn unlike; all are charged at the largest rate, {rate:.4g}"
    elif proposal.rows.trains:
        yield "Privacy", "NONE: the study trains without differential privacy; a model can give away what it was trained on"
    for one in proposal.spending:
        yield "Budget", (
            f"{one.span}: epsilon {rounded_up(one.before)} is spent, {rounded_up(one.after)} would be after the study, "
            f"{one.budget.epsilon:g} is allowed (delta {one.budget.delta:g})"
        )
    calibrates = proposal.policy.calibration_noise is not None and proposal.study.evaluation.calibration != "none"
    if proposal.policy.allow_simulated_noise:
        yield "Noise", "SIMULATED (the policy's test mode): whoever knows the study can remove it; it protects nobody"
    elif plan is not None or proposal.policy.evaluation_noise is not None or calibrates:
        yield "Noise", "from the operating system's secure generator; nobody can repeat or remove it"


def _leaves(proposal: Proposal) -> Iterator[tuple[str, str]]:
    policy = proposal.policy
    told = EVALUATION_WORDS[policy.release_evaluation].format(
        step=policy.evaluation_step, noise=policy.evaluation_noise_multiplier
    )
    update = "in every round the change of the model's numbers, clipped and with noise; "
    if not proposal.rows.trains:
        update = ""
    elif proposal.plan is None:
        update = "in every round the change of the model's numbers, as they are; "
    calibrates = proposal.rows.trains and proposal.study.evaluation.calibration != "none"
    tempered = "; " + CALIBRATION_WORDS[policy.release_calibration].format(noise=policy.calibration_noise_multiplier)
    yield "Leaves", update + told + (tempered if calibrates else "") + _own_model(proposal)
    if proposal.study.evaluation.groups:
        words = GROUP_WORDS[policy.release_groups].format(noise=policy.evaluation_noise_multiplier, least=policy.minimum_group)
        yield "Groups", f"the study asks by {', '.join(proposal.study.evaluation.groups)}; {words}"
    own = "" if proposal.study.personalisation.kind == "none" else "this hospital's own model, "
    yield "Stays", f"{own}images, masks, labels, patient ids, the manifest, this policy, the ledger, the log, the text of errors"


def _own_model(proposal: Proposal) -> str:
    """The study has each hospital fit a model of its own, without privacy: whether figures of it leave."""
    if proposal.study.personalisation.kind == "none" or not proposal.rows.trains:
        return ""
    if proposal.policy.release_evaluation not in RELEASES:
        return "; of this hospital's own model, nothing"
    return "; the same of this hospital's own model, which is fitted WITHOUT privacy: no epsilon covers these figures"
