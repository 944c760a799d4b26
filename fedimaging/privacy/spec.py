"""The `privacy:` block of a study. Light: it loads no torch."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from fedimaging.spec import Spec

EngineName = Literal["auto", "loop", "vmap", "opacus", "fused"]


class PrivacySpec(Spec):
    """DP-SGD at each hospital, for neighbours that differ by one whole unit, added or removed.

    unit: what is sampled, clipped and protected as one: a patient with all scans, or (the lesser claim) a record.
    target_epsilon: the noise is calibrated so that the whole run spends at most this; or
    noise_multiplier: the noise itself, as a multiple of the clip norm. Exactly one of the two.
    delta: None means min(1e-5, n^-1.1) for n units; it must be below 1 / n.
    clip_norm: C, a public constant: never taken from data.
    max_scans_per_patient: at most so many of a drawn patient's scans in one step, chosen at random.
    views_per_patient: augmented views of each chosen scan; they stand inside the unit and cost no privacy.
    sampling: Poisson only. Shuffled batches are refused: no tight accounting for them exists.
    secure_sum: `ideal` asks what a secure sum over the hospitals would buy: each hospital adds only its share of the noise
        that the sum needs. The guarantee then holds for whoever sees sums alone, and in a simulation alone: real hospitals
        refuse it.
    engine: how clipped sums are computed; all engines give the same sum. memory_mb: limit for its working memory.
    """

    unit: Literal["patient", "record"] = "patient"
    target_epsilon: float | None = Field(None, gt=0, allow_inf_nan=False)
    noise_multiplier: float | None = Field(None, gt=0, allow_inf_nan=False)
    delta: float | None = Field(None, gt=0, lt=1)
    clip_norm: float = Field(1.0, gt=0, allow_inf_nan=False)
    max_scans_per_patient: int = Field(4, ge=1)
    views_per_patient: int = Field(1, ge=1)
    sampling: Literal["poisson"] = "poisson"
    secure_sum: Literal["none", "ideal"] = "none"
    engine: EngineName = "auto"
    memory_mb: float = Field(4096.0, gt=0, allow_inf_nan=False)

    @field_validator("sampling", mode="before")
    @classmethod
    def _only_poisson(cls, value: object) -> object:
        if value != "poisson":
            raise ValueError(
                f"privacy.sampling={value!r} is refused: the accounting holds for Poisson sampling of units, and "
                "shuffled or fixed-size batches spend far more than it says; use 'poisson'"
            )
        return value

    @model_validator(mode="after")
    def _one_source_of_noise(self) -> Self:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
        return self
