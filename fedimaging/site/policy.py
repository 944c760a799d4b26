"""What a hospital allows. It stands above every study and no message can change it."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fedimaging.privacy.budget import Budget
from fedimaging.site.hours import parse_hours
from fedimaging.spec import CalibrationRelease, EvaluationRelease, GroupRelease, Spec, check_group_release

YEAR_DAYS = 366
"""A year's budget holds in any so many days that follow one another, and so in every calendar year, leap or not."""


class Limit(Spec):
    """The most that may be learnt about one patient: (epsilon, delta)."""

    epsilon: float = Field(gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)


class SitePolicy(Spec):
    """One hospital's own rules: what `rules.py` and `Site` hold every study and every round against. None: no limit.

    `in_total`, `per_year`: all studies together, for ever and in any 366 days. `unit` patient: only studies that protect
    whole patients. `without_privacy`: whether a study may train here without differential privacy. Epochs and steps are
    those of one round. `minimum_patients`: training here, after consent and opt-out; `minimum_hospitals`: whose updates a
    round needs, so that no update stands alone. `tasks` (kinds) and `models`: the only ones allowed. `train_hours`: when
    a round may begin, by this machine's clock (`hours.py`); empty: always. `consent_column` of the manifest must hold one
    of `consent_values` in every row of a patient; None: consent is kept elsewhere, and the manifest lists who gave it.

    `release_evaluation` says what may leave of an evaluation on the hospital's test patients: nothing; metrics rounded
    to `evaluation_step`, where there are `evaluation_least_patients` or more (not differentially private); totals with
    Gaussian noise of `evaluation_noise_multiplier`, each charged to the ledger (4: epsilon 0.9 for one, 3.4 for ten, at
    delta 1e-5); exact metrics; or scores per scan under pseudonyms (simulations only: those of real patients are
    personal data).

    `release_calibration` says what may leave of the hospital's validation patients so that a study can temper its final
    model's probabilities: nothing; nine sums over them with Gaussian noise of `calibration_noise_multiplier`, charged to the
    ledger like one evaluation; or exact sums.

    `release_groups` says what may leave of groups of test patients (sex, age bands …) with the final model: nothing; metrics of
    groups in which each answer has `minimum_group` patients or more (exact, not differentially private); or totals with the
    noise of an evaluation, one more charge.

    `allow_simulated_noise` is a test mode: noise that follows from the study's seed protects nobody.
    """

    in_total: Limit = Limit(epsilon=16.0)
    per_year: Limit = Limit(epsilon=8.0)
    minimum_noise_multiplier: float = Field(0.5, ge=0)
    unit: Literal["patient", "any"] = "patient"
    without_privacy: bool = False
    maximum_epochs: float | None = Field(10.0, gt=0)
    maximum_steps: int | None = Field(10_000, ge=1)
    maximum_rounds: int | None = Field(500, ge=1)
    minimum_patients: int = Field(20, ge=1)
    minimum_hospitals: int = Field(3, ge=1)
    tasks: tuple[Literal["binary", "multiclass", "multilabel", "segmentation"], ...] | None = None
    models: tuple[str, ...] | None = None
    train_hours: tuple[str, ...] = ()
    consent_column: str | None = None
    consent_values: tuple[str, ...] = ("yes",)
    release_evaluation: EvaluationRelease = "none"
    evaluation_step: float = Field(0.05, gt=0, le=0.5)
    evaluation_least_patients: int = Field(20, ge=2)
    evaluation_noise_multiplier: float = Field(4.0, gt=0)
    release_calibration: CalibrationRelease = "none"
    calibration_noise_multiplier: float = Field(4.0, gt=0)
    release_groups: GroupRelease = "none"
    minimum_group: int = Field(10, ge=2)
    maximum_update_norm: float = Field(1e4, gt=0)
    allow_simulated_noise: bool = False

    @field_validator("train_hours")
    @classmethod
    def _hours_make_sense(cls, hours: tuple[str, ...]) -> tuple[str, ...]:
        for text in hours:
            parse_hours(text)
        return hours

    @model_validator(mode="after")
    def _groups_leave_no_more_exactly(self) -> "SitePolicy":
        check_group_release(self.release_evaluation, self.release_groups)
        return self

    def budgets(self) -> tuple[Budget, Budget]:
        """In total, and in any year."""
        return (
            Budget(self.in_total.epsilon, self.in_total.delta),
            Budget(self.per_year.epsilon, self.per_year.delta, YEAR_DAYS),
        )

    @property
    def evaluation_noise(self) -> float | None:
        """The noise multiplier of an evaluation; None where evaluations are released without noise, or not at all."""
        return self.evaluation_noise_multiplier if self.release_evaluation == "noised" else None

    @property
    def calibration_noise(self) -> float | None:
        """The same of a calibration."""
        return self.calibration_noise_multiplier if self.release_calibration == "noised" else None
