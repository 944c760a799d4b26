"""One hospital at work: it checks an instruction, reserves the privacy it will cost, trains, and releases.

The server's instruction holds a study fingerprint, a round and weights. Everything else (data, model, learning rate,
clip, noise, budget) comes from the hospital's own copy of the study and its own policy.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.aggregation.mean import l2_norm
from fedimaging.errors import PrivacyError, SiteRefusal
from fedimaging.files import write_whole
from fedimaging.privacy.accounting import bound_for, epsilon, epsilon_rdp
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.group import patient_epsilon
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.noise import NoiseSource
from fedimaging.privacy.units import most_records
from fedimaging.results import PrivacySpent, SiteEvaluation, SiteUpdate
from fedimaging.site.audit_log import AuditLog
from fedimaging.site.local_state import LocalState
from fedimaging.site.policy import SitePolicy
from fedimaging.study.schema import Study
from fedimaging.training.evaluate import evaluate
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

    `plan` None: the study trains without privacy and the ledger is not needed.
    """

    name: str
    folder: Path
    study: Study
    policy: SitePolicy
    bench: Workbench
    train_records: SiteRecords
    test_records: SiteRecords
    plan: DpPlan | None
    budget: Budget | None
    noise_for: Callable[[int], NoiseSource]
    open_ledger: Callable[[Path], Ledger] = Ledger
    arm: str = "federated"

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.fingerprint = self.study.fingerprint
        self.log = AuditLog(self.folder / "audit.jsonl", durable=self.policy.durable_log)
        self.local = LocalState(self.folder, self.bench)
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
        self._check_declared()
        digest = hashlib.sha256(instruction.weights.tobytes()).hexdigest() if self.plan else ""
        delta = self._released_before(instruction.round, digest)
        if delta is None:
            delta = self._train_and_charge(instruction, digest)
        norm = l2_norm(delta)
        self.log.write("released", study=self.fingerprint, round=instruction.round, bytes=delta.nbytes, norm=norm)
        return SiteUpdate(self.name, instruction.round, delta)

    def evaluate(self, instruction: TrainInstruction, *, final: bool) -> SiteEvaluation:
        """Evaluate on this hospital's test patients; what leaves is what the policy allows. Errors: SiteRefusal."""
        self._check(instruction)
        if self.policy.release_evaluation == "none":
            raise SiteRefusal("evaluation_not_released")
        start = self.local.join(instruction.weights, before_round=instruction.round + 1)
        result = evaluate(self.bench, start, self.test_records, final=final)
        self.log.write("evaluated", study=self.fingerprint, round=instruction.round)
        keep_scores = final and self.policy.release_evaluation == "scores"
        return SiteEvaluation(
            site=self.name,
            round=instruction.round,
            loss=result.loss,
            n_patients=result.n_patients,
            metrics=result.quick_metrics,
            predictions=result.arrays if keep_scores else {},
        )

    def privacy_spent(self) -> PrivacySpent | None:
        """What the ledger says was spent, by PLD with RDP beside it; None where the study is not private."""
        if self.plan is None or self.budget is None:
            return None
        charges = self._ledger().charges()
        return PrivacySpent(
            unit=self.plan.unit,
            epsilon=epsilon(charges, self.budget.delta),
            delta=self.budget.delta,
            budget_epsilon=self.budget.epsilon,
            accountant="PLD",
            steps=sum(charge.steps for charge in charges),
            noise_multiplier=self.plan.noise_multiplier,
            sample_rate=self.plan.sample_rate,
            epsilon_rdp=epsilon_rdp(charges, self.budget.delta),
            noise=self.noise_for(0).name,
            **_read_for_patients(self.plan.unit, charges, self.budget.delta),
        )

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
        """A record-level claim is read for patients by the declared bound: it must hold. Error: PrivacyError."""
        declared = self.plan.scans_per_patient if self.plan else None
        most = most_records(self.train_records.patient_ids) if declared is not None else 0
        if declared is not None and most > declared:
            raise PrivacyError(
                f"scans_per_patient={declared} is below the {most} records that one patient has at site {self.name}; "
                "declare as many, or leave records out."
            )

    def _train_and_charge(self, instruction: TrainInstruction, digest: str) -> np.ndarray:
        entry = self._reserve(instruction.round)
        noise = self.noise_for(instruction.round) if self.plan else None
        start = self.local.join(instruction.weights, before_round=instruction.round)
        result = train_locally(
            self.bench, start, self.train_records, self.plan, noise, key=self._key(instruction.round),
            round=instruction.round,
        )
        delta = self.local.split(result.end, instruction.round) - instruction.weights
        self._check_release(delta)
        if entry is not None:
            self._keep_release(instruction.round, digest, delta)
            self._ledger().settle(entry, result.steps, released={"update": delta.nbytes})
        self.log.write("trained", study=self.fingerprint, round=instruction.round, private=self.plan is not None)
        return delta

    def _reserve(self, round: int) -> int | None:
        if self.plan is None or self.budget is None:
            return None
        if self.plan.noise_multiplier < self.policy.minimum_noise_multiplier:
            raise SiteRefusal("privacy", "the study's noise is below this hospital's least; raise it in the study.")
        if not self.noise_for(round).name.startswith("secure") and not self.policy.allow_simulated_noise:
            raise SiteRefusal("privacy", "this hospital's policy does not allow simulated noise.")
        entry = self._ledger().reserve(
            study=self.fingerprint, run=self.arm, round=round, charge=self.plan.charge(), budget=self.budget,
            epsilon_of=bound_for(self.budget),
        )
        return entry.id

    def _ledger(self) -> Ledger:
        """The ledger, opened (and so verified whole) once for this site object."""
        if self._opened_ledger is None:
            self._opened_ledger = self.open_ledger(self.folder / "ledger.sqlite")
        return self._opened_ledger

    def _check_release(self, delta: np.ndarray) -> None:
        norm = l2_norm(delta)
        if not math.isfinite(norm):
            raise SiteRefusal("update_not_finite")
        if norm > self.policy.maximum_update_norm:
            raise SiteRefusal("update_too_large")

    def _key(self, round: int) -> str:
        return f"{self.arm}/{self.study.seed}/{self.name}/{round}"

    def _released_before(self, round: int, digest: str) -> np.ndarray | None:
        """The update already released for this round and these weights: sending it again costs no privacy."""
        path = self.folder / "release.npz"
        if self.plan is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as kept:
            if int(kept["round"]) == round and str(kept["digest"]) == digest:
                return np.asarray(kept["delta"])
            if int(kept["round"]) >= round:
                raise SiteRefusal("replayed_round")
        return None

    def _keep_release(self, round: int, digest: str, delta: np.ndarray) -> None:
        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, round=round, digest=digest, delta=delta)

        write_whole(self.folder / "release.npz", write)


def _read_for_patients(unit: str, charges: Sequence[Charge], delta: float) -> dict[str, Any]:
    """The two facts of PrivacySpent that read a record-level claim for whole patients; none where no bound is known."""
    bounds = [charge.scans_per_patient for charge in charges if charge.unit == "record"]
    known = [bound for bound in bounds if bound is not None]
    if unit != "record" or not known or len(known) < len(bounds):
        return {}
    return {"scans_per_patient": max(known), "patient_epsilon": patient_epsilon(charges, delta)}
