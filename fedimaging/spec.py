"""The base of every part of a study: frozen, no unknown keys, no silent conversion of a wrong type."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

EvaluationRelease = Literal["none", "coarsened", "noised", "metrics", "scores"]
"""What may leave of an evaluation on a hospital's test patients (`site/evaluation.py`)."""


CalibrationRelease = Literal["none", "noised", "exact"]
"""What may leave of a calibration on a hospital's validation patients (`site/calibration.py`)."""


class Spec(BaseModel):
    """Frozen pydantic model; an unknown key is an error, as are infinite numbers, and defaults are validated too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
