"""The white-box audit of one private step: the study's own network, plan and engine, with and without an extreme patient."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedimaging.audits.membership import Estimate
from fedimaging.audits.white_box import Mechanism, WhiteBoxAudit, audit_mechanism
from fedimaging.privacy.accounting import steps_of
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.runs.audit_entry import Claim, Entry, entry, figure, figure_low
from fedimaging.runs.audit_target import Target, ceiling

_OTHERS = 7  # patients beside the canary
_NUMBERS = 4_000_000  # of noise drawn: so many trials are made, within the limits
_TRIALS = (100, 1000)
_GAIN = 100.0  # the canary's scan is this many times as bright as a patient's


def audit_white_box(target: Target, confidence: float) -> Entry:
    """The line `mechanism.white_box`. Needs a study with privacy.

    The noise multiplier of the step is the plan's, but at most 1: the code is the same, and a thousand trials say more.
    """
    site = target.largest_sites()[0]
    plan = target.federation.plans[site]
    plan = replace(plan, noise_multiplier=min(1.0, plan.noise_multiplier))
    target.bench.load(target.bench.initial)
    step = _Step(target, site, plan)
    trials = int(np.clip(_NUMBERS // target.bench.initial.size, *_TRIALS))
    found = audit_mechanism(
        step.mechanism, step.direction(), plan.noise_multiplier, trials=trials, delta=plan.delta, confidence=confidence
    )
    charged = steps_of([Charge(plan.noise_multiplier, 1.0, 1, plan.unit)])
    claim = Claim(lambda fpr: ceiling((charged,), fpr), found.claimed_epsilon)
    metrics = {"epsilon_low": figure_low(found.epsilon_low), "mu_low": figure_low(found.mu_low, found.mu_low),
               "mu": figure(Estimate(found.mu_hat, found.mu_low, float("nan")))}
    words = f"one step of {site} at noise multiplier {plan.noise_multiplier:.3g}, engine {plan.engine}"
    groups = {"claimed_mu": found.claimed_mu, "false_positives": found.false_positives,
              "false_negatives": found.false_negatives, "confidence": confidence}
    return entry("mechanism.white_box", words, target.unit, {"trials": trials}, metrics, claim, _verdict(found), groups)


def _verdict(found: WhiteBoxAudit) -> tuple[str, str]:
    against = f"μ ≥ {found.mu_low:.2f} (estimate {found.mu_hat:.2f}) against the claimed {found.claimed_mu:.2f}"
    if found.verdict == "violation":
        return "violation", f"{against}: one step gives away more than its noise multiplier says."
    if found.verdict == "inconclusive":
        return "inconclusive", f"the canary could not be seen in {found.trials} trials; more trials are needed."
    return "consistent", f"{against}."


class _Step:
    """One step of a hospital on a few of its scans, with the canary as a further unit, or without."""

    def __init__(self, target: Target, site: str, plan: DpPlan) -> None:
        self._target, self._plan = target, plan
        rows = np.flatnonzero(target.federation.train_site == target.federation.names.index(site))[: _OTHERS + 1]
        records = target.records(rows)
        self._network, self._bench = target.bench.network(records), target.bench
        places = np.arange(len(rows))
        self._x = self._bench.placed(records.inputs(places))
        self._y = records.targets(places, self._bench.task.kind).to(self._bench.device)
        self._x[-1] = self._x[-1] * _GAIN

    def mechanism(self, present: bool, trial: int) -> np.ndarray:
        """See `white_box.Mechanism`."""
        noise = SimulatedNoise(self._target.seed("white box"), f"present {present}", trial)
        return _flat(self._release(present, noise, self._plan))

    def direction(self) -> np.ndarray:
        """Where the canary shows: the difference of the two releases without noise."""
        quiet = replace(self._plan, noise_multiplier=0.0)
        noise = SimulatedNoise(0, "direction", 0)
        return _flat(self._release(True, noise, quiet)) - _flat(self._release(False, noise, quiet))

    def _release(self, present: bool, noise: SimulatedNoise, plan: DpPlan) -> list[Tensor]:
        n = len(self._x) if present else len(self._x) - 1
        return private_gradient(
            self._network, self._bench.task.losses, self._x[:n], self._y[:n], torch.arange(n, device=self._x.device), n, plan,
            noise, step=0,
        )


def _flat(tensors: list[Tensor]) -> np.ndarray:
    return np.concatenate([tensor.detach().reshape(-1).cpu().numpy() for tensor in tensors]).astype(np.float64)


__all__ = ["Mechanism", "audit_white_box"]
