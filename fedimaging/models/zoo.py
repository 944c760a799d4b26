"""The networks by name, and the one function that builds them. Light until a network is built."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from fedimaging.errors import StudyError, bad_value, unknown_name
from fedimaging.models import classifiers, pretrained, segmenters
from fedimaging.models.layout import Layout

if TYPE_CHECKING:
    from torch import nn

    from fedimaging.models.spec import ModelSpec

Builder = Callable[..., "nn.Module"]
"""(layout, **options) -> a freshly initialised network; options are keyword-only, typed, and have defaults."""

CLASSIFIERS: dict[str, Builder] = {
    "small_cnn": classifiers.small_cnn,
    "wavelet_net": classifiers.wavelet_net,
    "densenet": classifiers.densenet,
    "densenet121": classifiers.densenet121,
    "resnet18": classifiers.resnet18,
    "resnet50": classifiers.resnet50,
    "efficientnet_b0": classifiers.efficientnet_b0,
    "vit": classifiers.vit,
    "torchvision_resnet18": pretrained.torchvision_resnet18,
    "torchvision_resnet50": pretrained.torchvision_resnet50,
    "torchvision_densenet121": pretrained.torchvision_densenet121,
}
SEGMENTERS: dict[str, Builder] = {
    "unet": segmenters.unet,
    "basic_unet": segmenters.basic_unet,
    "segresnet": segmenters.segresnet,
    "dynunet": segmenters.dynunet,
    "swin_unetr": segmenters.swin_unetr,
}
MODELS: dict[str, Builder] = CLASSIFIERS | SEGMENTERS
"""Every network by its name in a study. A researcher adds an entry; it is made safe and checked like the rest."""


def build_model(
    spec: "ModelSpec", *, in_channels: int, out_channels: int, image_size: Sequence[int], seed: int
) -> "nn.Module":
    """The network of a study: (B, in_channels, *image_size) float32 in, a plain tensor (B, K) or (B, K, *image_size)
    out, in training mode on the CPU.

    Guarantees: equal for equal arguments (the global random state is neither read nor moved); no scan's output
    depends on another scan of the batch (checked here on two random scans); every parameter that requires a gradient
    gets one; no dropout, no in-place activation, no running statistics.
    Errors: StudyError when the network cannot take these sizes or the weights file does not fit; PrivacyError when
    scans of one batch influence each other (only a network added by a researcher can).
    """
    from fedimaging.models.build import build

    layout = Layout(in_channels, out_channels, tuple(image_size))
    return build(spec, MODELS[spec.name], layout, seed)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Error: StudyError for a network that is not in MODELS, an option it does not have, or a value of a wrong type."""
    if name not in MODELS:
        raise StudyError(unknown_name("model.name", name, MODELS))
    known = {k: p for k, p in inspect.signature(MODELS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in known:
            raise StudyError(unknown_name(f"model.options of {name}", key, known))
        try:
            # By way of JSON, whose strict rules take a list for a tuple but neither "4" nor true for a number.
            TypeAdapter(known[key].annotation).validate_json(json.dumps(value, allow_nan=False), strict=True)
        except (ValueError, TypeError) as error:
            rule = "; ".join(item["msg"] for item in error.errors()) if isinstance(error, ValidationError) else str(error)
            raise StudyError(bad_value(f"model.options.{key}", value, f"is not allowed: {rule}")) from None
