"""The base of every part of a study: frozen, no unknown keys, no silent conversion of a wrong type."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

EvaluationRelease = Literal["none", "coarsened", "noised", "metrics", "scores"]
"""What may leave of an evaluation on a hospital's test patients (`site/evaluation.py`)."""

GroupRelease = Literal["none", "noised", "metrics"]
"""What may leave of groups of test patients (`site/groups.py`)."""


def check_group_release(evaluation: EvaluationRelease, groups: GroupRelease) -> None:
    """Groups leave with an evaluation, and no more exactly than it does. Error: ValueError."""
    if groups != "none" and evaluation == "none":
        raise ValueError(f"release_groups={groups} needs evaluations that leave: set release_evaluation, or release_groups: none")
    if groups == "metrics" and evaluation not in ("metrics", "scores"):
        raise ValueError(f"release_groups=metrics is more exact than release_evaluation={evaluation}: take noised, or none")


CalibrationRelease = Literal["none", "noised", "exact"]
"""What may leave of a calibration on a hospital's validation patients (`site/calibration.py`)."""


class Spec(BaseModel):
    """Frozen pydantic model; an unknown key is an error, as are infinite numbers, and defaults are validated too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
