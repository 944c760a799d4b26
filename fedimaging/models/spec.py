"""The `model:` block of a study. Light: importing it loads neither torch nor MONAI."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fedimaging.models.zoo import MODELS, check_options
from fedimaging.spec import Spec


class ModelSpec(Spec):
    """Which network, and which of its tensors train.

    name: a key of `MODELS`.
    norm: what takes the place of every BatchNorm: `group` (GroupNorm), `instance`, `layer` (one group over all
        channels), `none` (nothing), or `frozen` (the pretrained running statistics as constants, weight and bias
        trainable; needs `weights`). LayerNorm inside transformers stays, it is per scan already.
    weights: a local .safetensors, .pt or .pth file of a state dict; relative paths start at the working directory.
    weights_sha256: pins the content of that file, so that every hospital starts from the same weights.
    trainable: `all`; `head` (the last layer only); `norm` (normalisation weights and biases, and the head); `lora`
        (updates of rank `lora_rank` to a transformer's linear layers, and the head).
    weight_standardisation: every convolution works with its weights at mean 0 and one norm (`standardised.py`).
    options: keyword options of that network's builder in `fedimaging/models/`, e.g. `{growth_rate: 8}`.
    Error: StudyError for an unknown name or option; pydantic's for the rest.
    """

    name: str = "small_cnn"
    norm: Literal["group", "instance", "layer", "none", "frozen"] = "group"
    weights: str | None = None
    weights_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    trainable: Literal["all", "head", "norm", "lora"] = "all"
    lora_rank: int = Field(4, ge=1, le=1024)
    weight_standardisation: bool = False
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_options(self.name, self.options)
        if self.norm == "frozen" and self.weights is None:
            raise ValueError("norm 'frozen' uses the running statistics of a weights file: give weights or norm 'group'")
        if self.options.get("components") and self.weights is None:
            raise ValueError(
                f"options.components={self.options['components']} needs the components themselves: give weights, a file that "
                "`fedimaging pretrain` made from public or generated images"
            )
        if self.weights_sha256 is not None and self.weights is None:
            raise ValueError("weights_sha256 is given without weights: give the file too")
        return self


__all__ = ["MODELS", "ModelSpec"]
