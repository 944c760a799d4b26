"""The study: a frozen tree of the parts' own specs. What a study says is the same at the server and every hospital.

Two parts are a machine's own and no part of the fingerprint: `data.root` (where the files lie) and `runtime`
(device, workers, carrier). Two studies with the same fingerprint train the same thing. A new key goes into `added_keys.py`,
with the value at which it changes nothing: otherwise every hospital has to approve its studies again.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fedimaging.aggregation.fairness import FairnessSpec
from fedimaging.aggregation.server_optimizers import ServerOptimizerSpec
from fedimaging.aggregation.site_privacy import SitePrivacySpec
from fedimaging.data.spec import DataSpec, HospitalsSpec
from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import CLASSIFIERS, SEGMENTERS
from fedimaging.privacy.spec import PrivacySpec
from fedimaging.spec import CalibrationRelease, EvaluationRelease, GroupRelease, Spec, check_group_release
from fedimaging.study.added_keys import without_added
from fedimaging.study.release_spec import ReleaseSpec
from fedimaging.training.spec import LocalTraining, PersonalSpec
from fedimaging.training.task_spec import TaskSpec


class FederationSpec(ServerOptimizerSpec):
    """How the hospitals' updates become one model. `weights`: `uniform`; by the declared public patient count; or
    `inverse_noise`, the inverse variance of the noise that the hospital's public plan puts on its update.
    `average_last` and `model_ema` smooth the models of the rounds into the final one, at no privacy cost: one of the two.
    `noise_limit`: the server shortens a round's mean update so that the noise in it has at most this standard deviation per
    coordinate; the learning rate then falls as the noise rises.
    `site_privacy`: hospital-level privacy at the server, beside that of patients at the hospitals; needs uniform weights.
    `fairness`: weights that follow the released evaluations of the hospitals, times `weights` (`aggregation/fairness.py`).
    """

    rounds: int = Field(10, ge=1, le=100_000)
    proximal_mu: float = Field(0.0, ge=0)
    local_parameters: Literal["none", "norm", "head"] = "none"
    sites_per_round: int | None = Field(None, ge=1)
    minimum_replies: int = Field(1, ge=1)
    deadline_seconds: float | None = Field(None, gt=0)
    weights: Literal["uniform", "public_patients", "inverse_noise"] = "uniform"
    average_last: int = Field(1, ge=1, description="the final model is the mean of the last so many rounds' models")
    model_ema: float = Field(0.0, ge=0, lt=1, description="decay of a running mean of the rounds' models, the final model")
    noise_limit: float | None = Field(None, gt=0)
    site_privacy: SitePrivacySpec | None = None
    fairness: FairnessSpec = FairnessSpec()

    @model_validator(mode="after")
    def _weights_may_move(self) -> "FederationSpec":
        if self.fairness.kind == "none":
            return self
        if self.site_privacy is not None:
            raise ValueError("site_privacy clips and weighs every hospital alike, and fairness would not: give one of them")
        if self.weights == "inverse_noise":
            raise ValueError("weights: inverse_noise weighs by noise, fairness by need: give uniform or public_patients")
        return self

    @model_validator(mode="after")
    def _proximal(self) -> "FederationSpec":
        if (self.algorithm == "fedprox") != (self.proximal_mu > 0):
            raise ValueError("proximal_mu above 0 goes with algorithm: fedprox, and fedprox needs it")
        return self

    @model_validator(mode="after")
    def _one_mean_of_rounds(self) -> "FederationSpec":
        if self.model_ema > 0 and self.average_last > 1:
            raise ValueError("average_last and model_ema both smooth the final model: give one of them")
        return self

    @model_validator(mode="after")
    def _equal_hospitals(self) -> "FederationSpec":
        if self.site_privacy is not None and self.weights != "uniform":
            raise ValueError(f"site_privacy clips every hospital alike: give weights: uniform, not {self.weights!r}")
        if self.site_privacy is not None and self.noise_limit is not None:
            raise ValueError("noise_limit counts the hospitals' noise only, not that of site_privacy: give one of them")
        return self


class OperatingPointSpec(Spec):
    """What the threshold has to keep on validation patients: one of the two, as a share."""

    sensitivity: float | None = Field(None, gt=0, le=1)
    specificity: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_aim(self) -> "OperatingPointSpec":
        if (self.sensitivity is None) == (self.specificity is None):
            raise ValueError("operating_point keeps one of the two: give sensitivity or specificity, for example 0.9")
        return self

    @property
    def aim(self) -> tuple[str, float]:
        """Its name and its target."""
        return ("sensitivity", self.sensitivity) if self.sensitivity is not None else ("specificity", self.specificity or 0.0)


class EvaluationSpec(Spec):
    """`every`: evaluate the global model after every so many rounds (0: after the last one only).

    `groups`: columns of the manifest by which test patients are also reported, or several joined by `+` (`sex+age`);
    `age_bands`: the edges of the groups of the column `age`; a group of fewer than `minimum_group` patients is not reported,
    nor one below the minimum of the policy. `group_values`: column -> its values, which real hospitals count by, for what
    they release must not depend on who their patients are (age has its bands; sex, unless given here, F and M).

    `operating_point`: a threshold is chosen on validation patients, and judged on test patients (binary tasks).
    `calibration`: `temperature` fits one temperature for the final model on the hospitals' validation patients, as far as each
    hospital's policy lets sums over them leave.
    """

    every: int = Field(1, ge=0)
    metric: str | None = None
    resamples: int = Field(1000, ge=100, le=100_000)
    surface_tolerance_mm: float = Field(1.0, gt=0)
    examples: int = Field(8, ge=0, le=64)
    groups: tuple[str, ...] = ()
    age_bands: tuple[float, ...] = (40.0, 60.0, 80.0)
    minimum_group: int = Field(10, ge=2)
    calibration: Literal["none", "temperature"] = "none"
    group_values: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    operating_point: OperatingPointSpec | None = None

    @model_validator(mode="after")
    def _groups_are_clear(self) -> "EvaluationSpec":
        if len(set(self.groups)) < len(self.groups):
            raise ValueError(f"groups={list(self.groups)} has a column twice")
        if not self.age_bands or list(self.age_bands) != sorted(set(self.age_bands)):
            raise ValueError(f"age_bands={list(self.age_bands)} must be edges that rise, like [40, 60, 80]")
        for column, values in self.group_values.items():
            if not values or len(set(values)) < len(values) or "" in values:
                raise ValueError(f"group_values.{column}={list(values)} must name each value of the column once")
        return self


class SimulatedHospitals(Spec):
    """What every simulated hospital's own policy says. In a deployment these stand in the hospital's policy.yaml.

    `evaluation_noise_multiplier`: of each evaluation, where `release_evaluation` is `noised`; `calibration_noise_multiplier`: of
    the calibration, likewise. `release_calibration` None: noised where the study trains with privacy, exact where it does not.
    `release_groups`: what leaves of groups of test patients where scores do not; `minimum_group`: no figure for fewer patients.
    """

    budget_epsilon: float | None = Field(None, gt=0)
    minimum_noise_multiplier: float = Field(0.0, ge=0)
    release_evaluation: EvaluationRelease = "scores"
    evaluation_noise_multiplier: float = Field(4.0, gt=0)
    release_calibration: CalibrationRelease | None = None
    calibration_noise_multiplier: float = Field(4.0, gt=0)
    release_groups: GroupRelease = "none"
    minimum_group: int = Field(2, ge=2)

    @model_validator(mode="after")
    def _groups_leave_no_more_exactly(self) -> "SimulatedHospitals":
        check_group_release(self.release_evaluation, self.release_groups)
        return self


class RuntimeSpec(Spec):
    """This machine's own choices; none of them changes what the study is."""

    device: str = "auto"
    workers: int | Literal["auto"] = "auto"
    carrier: Literal["in_process", "ray"] = "in_process"

    @field_validator("workers", mode="before")
    @classmethod
    def _somebody_works(cls, value: object) -> object:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError("must be auto or a whole number of at least 1")
        return value


class Study(Spec):
    """One experiment, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataSpec
    task: TaskSpec
    hospitals: HospitalsSpec
    model: ModelSpec
    training: LocalTraining
    privacy: PrivacySpec | None
    federation: FederationSpec
    personalisation: PersonalSpec = PersonalSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    policy: SimulatedHospitals = SimulatedHospitals()
    runtime: RuntimeSpec = RuntimeSpec()
    release: ReleaseSpec | None = None

    @model_validator(mode="after")
    def _model_does_the_task(self) -> "Study":
        needed, other = (SEGMENTERS, CLASSIFIERS) if self.task.kind == "segmentation" else (CLASSIFIERS, SEGMENTERS)
        if self.model.name in other:  # a network that a researcher added may do either
            raise ValueError(
                f"model.name={self.model.name!r} cannot do task.kind={self.task.kind!r}; take one of {', '.join(sorted(needed))}"
            )
        return self

    @model_validator(mode="after")
    def _there_are_probabilities_to_temper(self) -> "Study":
        if self.evaluation.calibration != "none" and self.task.kind == "segmentation":
            raise ValueError("evaluation.calibration=temperature tempers a classifier; with task.kind=segmentation give none")
        return self

    @model_validator(mode="after")
    def _noise_is_there_to_weigh(self) -> "Study":
        if self.federation.weights == "inverse_noise" and self.privacy is None:
            raise ValueError("federation.weights=inverse_noise weighs hospitals by their noise; with privacy null there is none")
        return self

    @model_validator(mode="after")
    def _weights_can_follow(self) -> "Study":
        if self.federation.fairness.kind == "none":
            return self
        kind = f"federation.fairness.kind={self.federation.fairness.kind}"
        if not self.evaluation.every:
            raise ValueError(f"{kind} follows the evaluations after rounds: set evaluation.every to 1 or more")
        if self.policy.release_evaluation == "none":
            raise ValueError(f"{kind} follows what hospitals release, and policy.release_evaluation=none keeps all of it back")
        if self.privacy is not None and self.privacy.secure_sum != "none":
            raise ValueError(f"{kind} moves weights; privacy.secure_sum shares noise by constant ones: give one of them")
        return self

    @model_validator(mode="after")
    def _own_models_can_be_told_of(self) -> "Study":
        if self.personalisation.kind != "none" and self.policy.release_evaluation in ("none", "noised"):
            raise ValueError(
                f"personalisation.kind={self.personalisation.kind} fits each hospital's own model without noise; no figure of "
                f"it leaves under policy.release_evaluation={self.policy.release_evaluation}: noise on the counts would protect "
                "the test patients only, not those it was fitted to; take metrics or scores, or no personalisation"
            )
        return self

    @model_validator(mode="after")
    def _noise_is_known(self) -> "Study":
        plain = self.training.optimizer == "sgd" and self.training.momentum == 0
        if self.federation.noise_limit is not None and not plain:
            raise ValueError("federation.noise_limit knows the noise in an update of plain sgd (no momentum at the hospitals)")
        return self

    @model_validator(mode="after")
    def _a_sum_can_be_secure(self) -> "Study":
        if self.privacy is None or self.privacy.secure_sum == "none":
            return self
        linear = self.training.optimizer == "sgd" and self.training.momentum == self.training.weight_decay == 0
        if not (self.training.local_steps == 1 and linear and self.federation.sites_per_round is None):
            raise ValueError(
                "privacy.secure_sum shares the noise of one sum among all hospitals: it needs training.local_steps=1, plain "
                "sgd (no momentum, no weight_decay), and all hospitals in every round"
            )
        return self

    @model_validator(mode="after")
    def _no_group_is_too_small_to_release(self) -> "Study":
        if self.release is not None and self.evaluation.groups and self.evaluation.minimum_group < self.release.minimum_count:
            raise ValueError(
                f"evaluation.minimum_group={self.evaluation.minimum_group} compares groups that are below "
                f"release.minimum_count={self.release.minimum_count}; raise it to that"
            )
        return self

    @model_validator(mode="after")
    def _more_is_better(self) -> "Study":
        limited = self.release is not None and self.release.minimum_external is not None
        if limited and (self.evaluation.metric or "").startswith(("brier", "hd95_mm")):
            raise ValueError(f"release.minimum_external needs a metric of which more is better, not {self.evaluation.metric!r}")
        return self

    @model_validator(mode="after")
    def _a_threshold_is_of_one_score(self) -> "Study":
        if self.evaluation.operating_point is not None and self.task.kind != "binary":
            raise ValueError(f"evaluation.operating_point is for task.kind=binary, not {self.task.kind}: leave it out")
        return self

    @property
    def calibration_release(self) -> CalibrationRelease:
        """What a simulated hospital's policy lets leave of a calibration."""
        return self.policy.release_calibration or ("exact" if self.privacy is None else "noised")

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the canonical JSON of everything but a machine's own keys."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()

    def evaluations_by(self, round: int) -> int:
        """How many evaluations of the global model the study asks for in rounds 1 to `round`: the last always is one."""
        last, every = self.federation.rounds, self.evaluation.every
        regular = round // every if every else 0
        return regular + (round >= last and (not every or last % every > 0))


def canonical(study: Study) -> str:
    """The study as JSON with sorted keys, without what is a machine's own (`data.root`, `runtime`), and without keys that came
    later, where they change nothing (`added_keys.py`). Studies that differ otherwise never share it."""
    tree: dict[str, Any] = without_added(study.model_dump(mode="json"))
    del tree["runtime"]
    tree["data"].pop("root", None)
    if tree["model"].get("weights_sha256"):
        tree["model"].pop("weights")  # where the file lies is a machine's own; its hash says what is in it
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
