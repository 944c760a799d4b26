"""One hospital at work: it checks an instruction, reserves the privacy it will cost, trains, and releases.

The server's instruction holds a study fingerprint, a round and weights. Everything else (data, model, learning rate,
clip, noise, budget) comes from the hospital's own copy of the study and its own policy.
"""

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from fedimaging.aggregation.mean import l2_norm
from fedimaging.errors import PrivacyError, SiteRefusal
from fedimaging.privacy.accounting import bound_for
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.ledger import Entry, Ledger
from fedimaging.privacy.noise import NoiseSource
from fedimaging.privacy.released_metrics import PatientTotals, noised, release_charge
from fedimaging.privacy.units import most_records
from fedimaging.results import Arrays, PrivacySpent, SiteCalibration, SiteEvaluation, SiteUpdate
from fedimaging.site.audit_log import AuditLog
from fedimaging.site.calibration import calibration_totals, exact
from fedimaging.site.checkpoint import Checkpoint, Kept
from fedimaging.site.evaluation import KeptRelease, LastQuestion, evaluation_totals, noised_reply, plain_release, size_of
from fedimaging.site.final_parts import FinalParts
from fedimaging.site.hours import within
from fedimaging.site.kept_update import KeptUpdate, MadeUpdate
from fedimaging.site.local_state import LocalState
from fedimaging.site.personal import RELEASES, PersonalModel
from fedimaging.site.policy import SitePolicy
from fedimaging.site.room import room
from fedimaging.site.rules import against
from fedimaging.site.spent import CALIBRATION, EVALUATION, spent_by
from fedimaging.study.schema import Study
from fedimaging.training.balance import check_column
from fedimaging.training.evaluate import Evaluated, evaluate
from fedimaging.training.local import train_locally
from fedimaging.training.workbench import SiteRecords, Workbench


@dataclass(frozen=True)
class TrainInstruction:
    """All that a server may say: which study, which round, which weights (float32, (P,))."""

    study: str
    round: int
    weights: np.ndarray


@dataclass
class Site:
    """A hospital, opened. `noise_for(round)` gives the round's generator: secure, or simulated and keyed.

    `plan` None: the study trains without privacy, or the hospital only evaluates. `budget` None: nothing is charged;
    `more_budgets` must hold beside it. `folder` has the hospital's ledger and log, `state` (default: the same) what the
    study leaves there from round to round. `durable`: what must survive a power cut is synced. `stop`: asked after every
    step; once it says so, the progress is kept and the round ends with SiteRefusal("stopping"). `one_question`: of each
    round one model is evaluated, and none of an earlier round (a simulation also tries baselines).
    """

    name: str
    folder: Path
    study: Study
    policy: SitePolicy
    bench: Workbench
    train_records: SiteRecords
    test_records: SiteRecords
    validation_records: SiteRecords
    plan: DpPlan | None
    budget: Budget | None
    noise_for: Callable[[int], NoiseSource]
    open_ledger: Callable[[Path], Ledger] = Ledger
    arm: str = "federated"
    state: Path | None = None
    more_budgets: tuple[Budget, ...] = ()
    durable: bool = True
    stop: Callable[[], bool] = lambda: False
    one_question: bool = False

    def __post_init__(self) -> None:
        self._state = self.state or self.folder
        for folder in (self.folder, self._state):
            folder.mkdir(parents=True, exist_ok=True)
        self.fingerprint = self.study.fingerprint
        self.log = AuditLog(self.folder / "audit.jsonl", durable=self.durable)
        self.local = LocalState(self._state, self.bench)
        self.personal = PersonalModel(
            self._state, self.study, self.bench, self.train_records, f"{self.arm}/{self.study.seed}/{self.name}",
            self._unless_stopped,
        )
        self._checkpoint = Checkpoint(self._state, simulated=not self.durable)
        self._kept_update = KeptUpdate(self._state, durable=self.durable)
        self._opened_ledger: Ledger | None = None

    def train(self, instruction: TrainInstruction) -> SiteUpdate:
        """Train one round and release the update.

        Guarantee: the ledger holds the round's charge on disk before the first patient is read. Errors: SiteRefusal
        with a code; nothing is spent for an instruction that is refused before training.
        """
        self._check(instruction)
        if instruction.round < 1:
            raise SiteRefusal("wrong_round")
        if not len(self.train_records):
            raise SiteRefusal("no_training_data")
        self._check_policy(self.train_records.n_patients)
        self._check_declared()
        digest = hashlib.sha256(instruction.weights.tobytes()).hexdigest() if self.plan else ""
        with self._room():
            release = self._kept_update.find(instruction.round, digest) if self.plan else None
            if release is None:
                if not within(self.policy.train_hours, datetime.now()):
                    raise SiteRefusal("outside_hours", "asked to train outside the hours of this hospital's policy.")
                release = self._train_and_charge(instruction, digest)
            if unfit := self._unfit(release.delta):
                raise SiteRefusal(unfit)
            if self.arm == "federated":  # a baseline has no own models
                self.personal.beside(instruction.round, self.local.join(instruction.weights, before_round=instruction.round))
            self.log.write(
                "released", study=self.fingerprint, round=instruction.round, bytes=release.delta.nbytes,
                norm=l2_norm(release.delta), epsilon=release.epsilon,
            )
        return SiteUpdate(self.name, instruction.round, release.delta)

    def evaluate(self, instruction: TrainInstruction, *, final: bool, personal: bool = False) -> SiteEvaluation:
        """Evaluate on this hospital's test patients; what leaves is what the policy allows (`evaluation.py`).

        personal: of the hospital's own model, after the last round (`personal.py`). Where evaluations steer the federation
        (`federation.fairness`), those before the last are on validation patients, if there are any. Guarantee: a noised
        evaluation is charged on disk before the first patient is read. Errors: SiteRefusal, BudgetExceeded.
        """
        self._check(instruction)
        self._check_policy(None)
        mode, round = self.policy.release_evaluation, instruction.round
        if mode == "none" or (personal and mode not in RELEASES):
            raise SiteRefusal("evaluation_not_released")
        if personal and (self.study.personalisation.kind == "none" or round != self.study.federation.rounds):
            raise SiteRefusal("wrong_round")
        if personal and not len(self.train_records):
            raise SiteRefusal("no_training_data")
        records = self._asked(final)
        with self._room():
            if self.one_question:
                LastQuestion(self._state).check(round, instruction.weights)
            if mode == "noised":
                reply = noised_reply(self.name, round, self._noised(
                    instruction, EVALUATION, self.policy.evaluation_noise_multiplier,
                    lambda: evaluation_totals(self._evaluated(instruction, records), self.bench.task),
                    whom="test" if records is self.test_records else "validation",
                ))
            else:
                found = self._evaluated(instruction, records, final=final, personal=personal)
                reply = plain_release(self.name, round, found, self.policy, final=final)
            if final and not personal and self.arm == "federated":  # baselines are shown by their figures over all patients
                reply = self._final_parts(instruction).added_to(reply, self.test_records, self.validation_records)
            model = {"model": "personal"} if personal else {}
            self.log.write("evaluated", study=self.fingerprint, round=round, release=mode, bytes=size_of(reply), **model)
        return reply

    def calibrate(self, instruction: TrainInstruction) -> SiteCalibration:
        """Sums over this hospital's validation patients from which the study tempers its final model (`calibration.py`).

        Guarantee: a noised calibration is charged on disk before the first validation patient is read. Errors: SiteRefusal,
        also where the study asks for no calibration, or of any round but the last; BudgetExceeded.
        """
        self._check(instruction)
        self._check_policy(None)
        mode, round = self.policy.release_calibration, instruction.round
        if mode == "none" or self.study.evaluation.calibration == "none":
            raise SiteRefusal("calibration_not_released")
        if round != self.study.federation.rounds:
            raise SiteRefusal("wrong_round")
        with self._room():
            if self.one_question:
                LastQuestion(self._state).check(round, instruction.weights)
            noise = self.policy.calibration_noise
            totals = exact(self._sums(instruction)) if noise is None else self._noised(
                instruction, CALIBRATION, noise, lambda: self._sums(instruction))
            size = sum(array.nbytes for array in totals.values())
            self.log.write("calibrated", study=self.fingerprint, round=round, release=mode, bytes=size)
        return SiteCalibration(self.name, round, totals["tempering"], float(totals["noise_std"]))

    def privacy_spent(self) -> PrivacySpent | None:
        """What the ledger says was spent, by PLD with RDP beside it; None where this hospital trains without privacy, or
        nothing is charged."""
        if self.budget is None or (self.plan is None and len(self.train_records)):
            return None
        release_noise, noise = self.policy.evaluation_noise_multiplier, self.noise_for(0).name
        return spent_by(self._ledger(), self.budget, self.plan, release_noise, noise)

    def _check(self, instruction: TrainInstruction) -> None:
        weights = instruction.weights
        if instruction.study != self.fingerprint:
            raise SiteRefusal("study_not_approved")
        if not 0 <= instruction.round <= self.study.federation.rounds:
            raise SiteRefusal("wrong_round")
        if weights.dtype != np.float32 or weights.shape != (self.bench.shared_size,):
            raise SiteRefusal("wrong_shape")
        if not np.isfinite(weights).all():
            raise SiteRefusal("weights_not_finite")

    def _check_declared(self) -> None:
        """A record-level claim is read for patients by the declared bound: it must hold; and groups that are drawn unlike must
        be named by the data. Errors: PrivacyError, DataError."""
        if self.study.training.balance is not None:
            check_column(self.study.training.balance, self.train_records.dataset.columns)
        declared = self.plan.scans_per_patient if self.plan else None
        most = most_records(self.train_records.patient_ids) if declared is not None else 0
        if declared is not None and most > declared:
            raise PrivacyError(
                f"scans_per_patient={declared} is below the {most} records that one patient has at site {self.name}; "
                "declare as many, or leave records out."
            )

    def _check_policy(self, training_patients: int | None) -> None:
        """Error: SiteRefusal where the policy, which may have changed since, does not allow the study."""
        reasons = against(self.policy, self.study, self.plan, training_patients)
        if reasons:
            raise SiteRefusal("against_policy", f"the study is against this hospital's policy: {'; '.join(reasons)}.")

    def _room(self) -> AbstractContextManager[None]:
        return room((self.folder, self._state), self.bench.initial.nbytes)

    def _train_and_charge(self, instruction: TrainInstruction, digest: str) -> MadeUpdate:
        round, weights = instruction.round, instruction.weights
        kept = self._checkpoint.find(round, weights)
        entry = self._go_on(kept, round) if kept is not None else None
        if kept is not None and entry is None and self.plan is not None:
            kept = None  # its reservation is closed: a round of this name has left, or was given up
        if entry is None and self.plan is not None:
            entry = self._charge(self.arm, round, self.plan.charge())
        result = train_locally(
            self.bench, self.local.join(weights, before_round=round), self.train_records, self.plan,
            self.noise_for(round) if self.plan else None, key=self._key(round), round=round,
            resume=kept.progress if kept else None,
            after_step=self._checkpoint.watch(round, weights, entry.id if entry else None, self.stop, kept),
        )
        delta = self.local.split(result.end, round) - weights
        release = MadeUpdate(delta, entry.epsilon if entry else None)
        if entry is not None:
            # Also where it may not leave: a server that asked for it again and again would use up the hospital's budget.
            self._kept_update.keep(round, digest, release)
            self._ledger().settle(entry.id, result.steps, released=None if self._unfit(delta) else {"update": delta.nbytes})
        self._checkpoint.drop()
        noise = self.noise_for(round).name if self.plan else "none"
        self.log.write("trained", study=self.fingerprint, round=round, steps=result.steps, noise=noise, resumed=kept is not None)
        return release

    def _go_on(self, kept: Kept, round: int) -> Entry | None:
        """The reservation under which a kept round goes on; None where there is none, or it is closed.

        The steps that may have run after the checkpoint, and will run again, are charged once more.
        """
        if self.plan is None or kept.entry is None:
            return None
        if self._ledger().open_entries(self.fingerprint, self.arm).get(kept.entry) != round:
            return None
        most = self.plan.steps_per_round
        again = min(most, kept.begun if kept.begun is not None else most) - kept.progress.steps
        more = self._charge(self.arm, round, self.plan.charge(max(0, again)), give_up_open=False)
        self._ledger().settle(more.id, max(0, again))
        return Entry(kept.entry, self.plan.charge(), more.epsilon)

    def _charge(self, run: str, round: int, charge: Charge, *, give_up_open: bool = True) -> Entry:
        if self.budget is None:
            raise SiteRefusal("privacy", "this study is to be charged at this hospital, but it has no budget.")
        if not self.noise_for(round).name.startswith("secure") and not self.policy.allow_simulated_noise:
            raise SiteRefusal("privacy", "this hospital's policy does not allow simulated noise.")
        return self._ledger().reserve(
            study=self.fingerprint, run=run, round=round, charge=charge, budget=self.budget,
            epsilon_of=bound_for(self.budget), also=[(more, bound_for(more)) for more in self.more_budgets],
            give_up_open=give_up_open,
        )

    def _asked(self, final: bool) -> SiteRecords:
        """Whom an evaluation is on. A model that its test patients steered would look better on them than it is."""
        steers = self.study.federation.fairness.kind != "none" and not final and len(self.validation_records)
        return self.validation_records if steers else self.test_records

    def _evaluated(
        self, instruction: TrainInstruction, records: SiteRecords, *, final: bool = False, personal: bool = False
    ) -> Evaluated:
        vector = self.local.join(instruction.weights, before_round=instruction.round + 1)
        if personal:
            vector = self.personal.final(vector)
        return evaluate(self.bench, vector, records, final=final)

    def _unless_stopped(self) -> None:
        if self.stop():
            raise SiteRefusal("stopping")

    def _sums(self, instruction: TrainInstruction) -> PatientTotals:
        return calibration_totals(self._evaluated(instruction, self.validation_records), self.bench.task)

    def _final_parts(self, instruction: TrainInstruction) -> FinalParts:
        sigma, note = self.policy.evaluation_noise_multiplier, partial(self.log.write, "refused", study=self.fingerprint)
        return FinalParts(
            self.study, self.policy, self.bench.task, partial(self._evaluated, instruction),
            lambda what, totals_of: self._noised(instruction, what, sigma, totals_of), lambda code: note(code=code),
        )

    def _noised(
        self, instruction: TrainInstruction, what: str, sigma: float, totals_of: Callable[[], PatientTotals], *,
        whom: str = "test",
    ) -> Arrays:
        """Totals with noise, charged before `totals_of` reads a patient; kept on disk: asked again, the same leave at no cost."""
        round, name = instruction.round, what.removeprefix("/")
        question = f"{self.fingerprint}/{round}/".encode() + instruction.weights.tobytes()
        question += b"" if whom == "test" else f"/{whom}".encode()
        digest = hashlib.sha256(question if what == EVALUATION else name.encode() + question)
        key, kept = digest.hexdigest(), KeptRelease(self._state / f"{name.replace('/', '_')}.npz")
        released = kept.get(key)
        if released is None:
            entry = self._charge(self.arm + what, round, release_charge(sigma))
            # Of two different questions the noise is never the same: its step is theirs.
            released = noised(totals_of(), sigma, self.noise_for(round), step=-1 - int(key[:16], 16))
            kept.put(key, released)
            what_left = {name.rpartition("/")[2]: sum(array.nbytes for array in released.values())}
            self._ledger().settle(entry.id, 1, released=what_left)
        return released

    def _ledger(self) -> Ledger:
        """The ledger, opened (and so verified whole) once for this site object."""
        if self._opened_ledger is None:
            self._opened_ledger = self.open_ledger(self.folder / "ledger.sqlite")
        return self._opened_ledger

    def _unfit(self, delta: np.ndarray) -> str:
        """The code with which an update is not released; empty where it may leave."""
        norm = l2_norm(delta)
        if not math.isfinite(norm):
            return "update_not_finite"
        return "update_too_large" if norm > self.policy.maximum_update_norm else ""

    def _key(self, round: int) -> str:
        return f"{self.arm}/{self.study.seed}/{self.name}/{round}"
