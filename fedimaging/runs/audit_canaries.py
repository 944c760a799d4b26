"""The one-run audit: the study trained once more with canaries at its largest hospital, and what guessing them proves.

The canaries go through everything a patient's clipped gradient goes through: Poisson sampling, the hospital's noise, its
denominator, its local steps, the wire. The attacker is the one that the guarantee is made against: it knows every other
patient of the hospital, so it takes their part out of the updates, and guesses from what is left.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.audits.canaries import Canaries, CanaryAudit, WithCanaries, audit_canaries, sgd_weights
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.runs.audit_entry import Claim, Entry, entry, figure_low
from fedimaging.runs.audit_federation import kept, train_federation
from fedimaging.runs.audit_membership import claim_of
from fedimaging.runs.audit_options import AuditOptions
from fedimaging.runs.audit_target import Target
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site


def audit_one_run(target: Target, options: AuditOptions, confidence: float, say: Callable[[str], None]) -> Entry:
    """The line `canaries.one_run`. Needs a study with privacy."""
    site = target.largest_sites()[0]
    plan = target.federation.plans[site]
    count = min(options.canaries, target.bench.shared_size)
    run = _CanaryRun(target, site, plan, Canaries(count, target.bench.shared_size, target.seed("canaries")))
    found = kept(target.folder / "canaries", target.key | {"canaries": count}, run.train)
    say(f"the study is trained again with {count} canaries at {site}.")
    signal = run.signal * int(found["rounds"])
    # Where the update is no linear function of the gradients nobody knows how far a canary shows.
    threshold = signal / 2 if run.linear else float(np.median(found["scores"]))
    guessed = audit_canaries(found["scores"], run.canaries.present, threshold, plan.delta, confidence)
    claim = claim_of(target, {site: target.charges[site]}, target.unit)
    assert claim is not None
    return _line(target, site, guessed, claim, count, run.linear)


def _line(target: Target, site: str, guessed: CanaryAudit, claim: Claim, count: int, linear: bool) -> Entry:
    metrics: dict[str, Any] = {
        "epsilon_low": figure_low(guessed.epsilon_low), "epsilon_low_gaussian": figure_low(guessed.mu_epsilon_low),
        "mu_low": figure_low(guessed.mu_low),
        "tpr": figure_low(guessed.found / guessed.present, guessed.rate_limits()[0]),
    }
    groups: dict[str, Any] = {
        "guesses": {"made": guessed.guesses, "right": guessed.correct},
        "threshold": {"found": guessed.found, "present": guessed.present,
                      "false_alarms": guessed.false_alarms, "absent": guessed.absent},
        "confidence": guessed.confidence,
    }
    if not linear:
        groups["note"] = "The optimizer is not linear in the gradients, so the attacker reads its updates less well."
    sizes = {"canaries": count, "present": guessed.present, "absent": guessed.absent}
    return entry(
        "canaries.one_run", f"updates of {site}, all rounds", target.unit, sizes, metrics, claim,
        judge_canaries(guessed, claim), groups,
    )


def judge_canaries(guessed: CanaryAudit, claim: Claim) -> tuple[str, str]:
    """Violation where the one-run bound lies above the epsilon of the ledger, or the rates above its ceiling."""
    low, high = guessed.rate_limits()
    allowed = claim.ceiling(high)
    counts = (f"{guessed.found} of {guessed.present} canaries were found at {guessed.false_alarms} false alarms among "
              f"{guessed.absent}")
    if guessed.epsilon_low > claim.epsilon:
        return "violation", f"the guesses prove ε ≥ {guessed.epsilon_low:.2f}, above the {claim.epsilon:.2f} that is claimed."
    if low > allowed:
        return "violation", (
            f"{counts}: at least {low:.1%}, where the guarantee allows at most {allowed:.1%} "
            f"(μ ≥ {guessed.mu_low:.2f}, so ε ≥ {guessed.mu_epsilon_low:.2f}, against ε = {claim.epsilon:.2f})."
        )
    best = audit_of_a_perfect_guess(guessed)
    if best[0] <= claim.ceiling(best[1]):
        return "inconclusive", (
            f"even if all {guessed.present + guessed.absent} canaries were guessed right, ε = {claim.epsilon:.2f} would not be "
            "disproved; more canaries are needed."
        )
    return "consistent", f"{counts}: no more than the guarantee allows, which is no proof of it."


def audit_of_a_perfect_guess(guessed: CanaryAudit) -> tuple[float, float]:
    """The limits of the rates if every canary had been guessed right."""
    return replace(guessed, found=guessed.present, false_alarms=0).rate_limits()


@dataclass
class _CanaryRun:
    """One audited re-run; everything happens in this process, so that the attacker can be told of the other patients."""

    target: Target
    site: str
    plan: DpPlan
    canaries: Canaries

    def __post_init__(self) -> None:
        spec = self.target.study.training
        self.linear = spec.optimizer == "sgd"
        self._weights = sgd_weights(self.plan.steps_per_round, spec.momentum if self.linear else 0.0)
        self.signal = float(self.plan.sample_rate * self._weights.sum()) * self.plan.clip_norm
        self._places = np.flatnonzero(self.target.bench.shared)
        self._scores, self._others, self._rounds = np.zeros(self.canaries.count), np.zeros(self.canaries.size), 0

    def train(self) -> dict[str, np.ndarray]:
        """Scores (M,): the length of all updates along each canary, other patients taken out; `rounds` with an update."""
        federation = replace(self.target.federation, folder=self.target.folder / "canaries")
        train_federation(self.target, federation, workers=1, on_update=self._update, open_site=self._open)
        return {"scores": self._scores, "rounds": np.array(self._rounds)}

    def _open(self, folder: Path, place: int) -> Site:
        site = open_simulated_site(folder, place)
        if site.name != self.site:
            return site
        noise_for = site.noise_for
        return replace(site, noise_for=lambda round: WithCanaries(
            noise_for(round), self.canaries, self.plan.clip_norm, self._places, self._other_patients
        ))

    def _other_patients(self, step: int, total: np.ndarray) -> None:
        if step == 0:
            self._others[:] = 0
        self._others += self._weights[step] * total[self._places]

    def _update(self, site: str, round: int, weights: np.ndarray, delta: np.ndarray) -> None:
        if site != self.site:
            return
        rate = self.target.study.training.learning_rate_in(round, self.target.study.federation.rounds)
        seen = -delta.astype(np.float64) * (self.plan.denominator / rate)
        self._scores += self.canaries.project(seen - self._others if self.linear else seen)
        self._rounds += 1
