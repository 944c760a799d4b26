"""The `training:` block of a study: how a hospital trains between two exchanges. Light: imports no torch."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from fedimaging.data.spec import AugmentSpec
from fedimaging.spec import Spec


class LocalTraining(Spec):
    """Local optimisation at a hospital.

    batch_size: scans a step; with privacy, the expected number of units (patients) a step.
    local_epochs / local_steps: exactly one of them. With privacy an epoch is 1 / sample_rate steps.
    schedule: `cosine` lets the learning rate fall to a tenth over the rounds of the study.
    The optimizer starts anew every round, so no hidden state of a hospital lives on between rounds.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0, le=1000)
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, lt=1)
    batch_size: int = Field(ge=1, le=1_000_000)
    local_epochs: float | None = Field(None, gt=0, le=1000)
    local_steps: int | None = Field(None, ge=1, le=1_000_000)
    augment: AugmentSpec | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("give exactly one of local_epochs and local_steps")
        return self

    def steps(self, steps_per_epoch: float) -> int:
        """Optimizer steps in one round, at least one; a part of a step counts as a whole one."""
        if self.local_steps is not None:
            return self.local_steps
        assert self.local_epochs is not None
        return max(1, math.ceil(round(self.local_epochs * steps_per_epoch, 9)))

    def learning_rate_in(self, round: int, rounds: int) -> float:
        """The learning rate of a round (1-based)."""
        if self.schedule == "constant" or rounds <= 1:
            return self.learning_rate
        part = (round - 1) / (rounds - 1)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * part)))
