"""What a hospital allows. It stands above every study and no message can change it."""

from typing import Literal

from pydantic import Field

from fedimaging.spec import Spec


class SitePolicy(Spec):
    """One hospital's own rules.

    `release_evaluation` says what may leave of an evaluation on the hospital's test patients: nothing, metrics, or
    scores per scan under pseudonyms (simulations only: scores of real patients are personal data).
    """

    minimum_noise_multiplier: float = Field(0.0, ge=0)
    release_evaluation: Literal["none", "metrics", "scores"] = "none"
    maximum_update_norm: float = Field(1e4, gt=0)
    allow_simulated_noise: bool = False
    durable_log: bool = True
