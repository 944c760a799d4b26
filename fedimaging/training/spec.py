"""The `training:` block of a study: how a hospital trains between two exchanges. Light: imports no torch."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedimaging.data.spec import AugmentSpec
from fedimaging.spec import Spec


class BalanceSpec(Spec):
    """Draw patients so that groups weigh alike in training, whatever their size: each with a probability proportional to one
    over its group's share.

    column: of the manifest, with the group's name as it stands there; a patient's first scan that states one decides.
    shares: group -> its part of all patients, a public number (of a census, say), declared here and never counted from data; a
    patient of none of these groups is drawn as without balance. most: no group is drawn more than so many times as often as
    without balance.
    """

    column: str = Field(min_length=1)
    shares: dict[Annotated[str, Field(min_length=1)], Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=2)
    most: float = Field(3.0, ge=1, le=100)

    @model_validator(mode="after")
    def _shares_are_parts(self) -> Self:
        total = sum(self.shares.values())
        if total > 1 + 1e-6:
            raise ValueError(f"shares={self.shares} add up to {total:g}; parts of all patients are at most 1 together")
        return self

    def odds(self) -> dict[str, float]:
        """Group -> how many times as often as without balance its patients are drawn, as far as the batch allows."""
        return {group: min(self.most, 1 / (len(self.shares) * share)) for group, share in self.shares.items()}


class PersonalSpec(Spec):
    """A hospital's own model, which it fits to its own patients WITHOUT privacy and which therefore never leaves it.

    fine_tune: after the federation, `steps` steps from the final model. ditto: a model of its own from the first round on, which
    takes `steps` steps beside each round, and as many towards the final model, each pulled to the shared one with `mu` (Li et
    al. 2021, Ditto). `mu` may be given to fine_tune too. Optimizer and batch size are those of `training`.
    """

    kind: Literal["none", "fine_tune", "ditto"] = "none"
    steps: int = Field(20, ge=1, le=100_000)
    learning_rate: float = Field(0.1, gt=0, le=1000)
    mu: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _pull(self) -> Self:
        if self.kind == "ditto" and self.mu == 0:
            raise ValueError("kind: ditto is pulled to the shared model and needs mu above 0 (0.1 to 1 is usual)")
        return self


class LocalTraining(Spec):
    """Local optimisation at a hospital.

    batch_size: scans a step; with privacy, the expected number of units (patients) a step.
    local_epochs / local_steps: exactly one of them. With privacy an epoch is 1 / sample_rate steps.
    schedule: `cosine` lets the learning rate fall to a tenth over the rounds of the study.
    The optimizer starts anew every round, so no hidden state of a hospital lives on between rounds.
    balance: patients drawn so that groups weigh alike; with privacy charged at the largest probability of any group.
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
    balance: BalanceSpec | None = None

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
