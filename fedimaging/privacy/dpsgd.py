"""One private step, with its sampler, clip, noise and charge tied together so that they cannot drift apart.

Source: Abadi et al. 2016; the constant denominator and the noise on empty draws as in sections 1.2 and 1.3 of the
project's privacy notes: dividing by the drawn number would leak it and change the sensitivity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from fedimaging.errors import PrivacyError, bad_value
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.clipping import Losses, clipped_sum
from fedimaging.privacy.noise import NoiseSource
from fedimaging.privacy.spec import PrivacySpec

__all__ = ["DpPlan", "PrivacySpec", "plan_for", "private_gradient"]


@dataclass(frozen=True)
class DpPlan:
    """What a hospital does in every round. All of it is public: sizes are declared numbers, never counted on the day.

    Each of `rounds` rounds takes `steps_per_round` steps; each step draws every one of `n_units` units with
    probability `sample_rate` and releases (sum of clipped unit gradients + N(0, (noise_multiplier * clip_norm)²))
    / denominator, a public constant (sample_rate * n_units), whatever was drawn. `engine` and `memory_mb` say how the
    sum is computed and change nothing else. `scans_per_patient`, for unit "record" only: the declared upper bound of
    records of one patient here, by which the claim can be read for a whole patient; None where nobody declared one.
    `relative_rates`: where groups of units are drawn less often than `sample_rate`, each group's rate over it, at most 1, and
    that of a unit of no group under ""; empty where all are drawn alike. The charge is at `sample_rate`, the largest: a thinner
    draw never costs more. `mean_relative`: of these rates over all units, by public shares; it is in the denominator.
    `noise_share`: below 1 only in a simulation of an ideal secure sum, where the other hospitals add the rest of the
    noise; the charge then is that of the sum.
    """

    unit: str
    n_units: int
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    delta: float
    steps_per_round: int
    rounds: int
    engine: str = "auto"
    memory_mb: float | None = None
    scans_per_patient: int | None = None
    noise_share: float = 1.0
    relative_rates: Mapping[str, float] = field(default_factory=dict)
    mean_relative: float = 1.0

    def __post_init__(self) -> None:
        rates = [*self.relative_rates.values(), self.mean_relative]
        if not all(0 < rate <= 1 for rate in rates):
            raise PrivacyError(bad_value("relative_rates", dict(self.relative_rates), "must lie above 0 and at most at 1"))

    @property
    def denominator(self) -> float:
        """The expected number of drawn units, q N (by public shares, where groups are drawn unlike)."""
        return self.sample_rate * self.n_units * self.mean_relative

    def charge(self, steps: int | None = None) -> Charge:
        """What `steps` steps cost (None: one round), for the accountant and the ledger."""
        taken = self.steps_per_round if steps is None else steps
        return Charge(
            self.noise_multiplier, self.sample_rate, taken, self.unit, scans_per_patient=self.scans_per_patient
        )


def plan_for(
    spec: PrivacySpec, n_units: int, expected_batch: float, steps_per_round: int, rounds: int,
    scans_per_patient: int | None = None,
) -> DpPlan:
    """The plan for a hospital that declares `n_units` units and wants `expected_batch` of them in a step on average.

    With `target_epsilon` the noise is calibrated so that all rounds together stay within it. `scans_per_patient` as in
    `DpPlan`. Raises PrivacyError for an expected batch above the number of units, a delta that is not below
    1 / n_units, sizes below 1, or scans per patient where the unit is the patient, who is one unit with any number.
    """
    sizes = {"n_units": n_units, "steps_per_round": steps_per_round, "rounds": rounds}
    for name, value in (sizes if scans_per_patient is None else sizes | {"scans_per_patient": scans_per_patient}).items():
        if value < 1:
            raise PrivacyError(bad_value(name, value, "must be at least 1"))
    if scans_per_patient is not None and spec.unit == "patient":
        raise PrivacyError(bad_value("scans_per_patient", scans_per_patient, "has no meaning for unit 'patient'", "leave it out"))
    if not 0 < expected_batch <= n_units:
        rule = f"must be above 0 and at most the number of units, {n_units}"
        raise PrivacyError(bad_value("expected_batch", expected_batch, rule, "lower it"))
    delta = _delta(spec, n_units)
    sample_rate = expected_batch / n_units
    return DpPlan(
        unit=spec.unit,
        n_units=n_units,
        sample_rate=sample_rate,
        noise_multiplier=_noise_multiplier(spec, delta, sample_rate, steps_per_round * rounds),
        clip_norm=spec.clip_norm,
        delta=delta,
        steps_per_round=steps_per_round,
        rounds=rounds,
        engine=spec.engine,
        memory_mb=spec.memory_mb,
        scans_per_patient=scans_per_patient,
    )


def _delta(spec: PrivacySpec, n_units: int) -> float:
    delta = min(1e-5, n_units**-1.1) if spec.delta is None else spec.delta
    if delta >= 1 / n_units:
        rule = f"must be below 1 / {n_units}, one over the number of units: it is the chance that a unit is given away"
        raise PrivacyError(bad_value("privacy.delta", delta, rule, "lower it, or leave it out"))
    return delta


def _noise_multiplier(spec: PrivacySpec, delta: float, sample_rate: float, steps: int) -> float:
    if spec.noise_multiplier is not None:
        return spec.noise_multiplier
    if spec.target_epsilon is None:
        raise PrivacyError("privacy has neither target_epsilon nor noise_multiplier; give one of them.")
    from fedimaging.privacy.accounting import calibrate  # dp_accounting takes seconds to load

    return calibrate(spec.target_epsilon, delta, sample_rate, steps)


def private_gradient(
    model: nn.Module,
    losses: Losses,
    x: Tensor,
    y: Tensor,
    unit_of_scan: Tensor,
    n_units: int,
    plan: DpPlan,
    noise: NoiseSource,
    step: int,
) -> list[Tensor]:
    """The noised gradient of one step, one tensor per trainable parameter: all that may leave the step.

    Arguments as for `clipping.clipped_sum`; `n_units` is the number drawn, which may be 0: the step is then noise
    alone, and is charged like any other. The result is finite. `step` must not repeat within a `noise`.
    """
    clipped = clipped_sum(
        model, losses, x, y, unit_of_scan, n_units, plan.clip_norm, engine=plan.engine, memory_mb=plan.memory_mb
    )
    std = plan.noise_share * plan.noise_multiplier * clipped.sensitivity
    noise.add_gaussian(clipped.sum, std, step, over=plan.denominator)
    return clipped.sum
