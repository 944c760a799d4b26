"""The base of every part of a study: frozen, no unknown keys, no silent conversion of a wrong type."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Frozen pydantic model; an unknown key is an error, as are infinite numbers, and defaults are validated too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
