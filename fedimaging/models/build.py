"""From a spec to a network: deterministic start, weights from a file, DP-safe, checked on two random scans."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedimaging import lean_imports
from fedimaging.errors import StudyError
from fedimaging.models.dp_safe import freeze_unused, make_dp_safe, require_independent_scans
from fedimaging.models.layout import Layout
from fedimaging.models.lora import add_lora
from fedimaging.models.standardised import standardise_weights
from fedimaging.models.state import head_parameter_names, norm_parameter_names
from fedimaging.models.weights import load_weights

if TYPE_CHECKING:
    from fedimaging.models.spec import ModelSpec
    from fedimaging.models.zoo import Builder


def build(spec: "ModelSpec", builder: "Builder", layout: Layout, seed: int) -> nn.Module:
    """See zoo.build_model."""
    lean_imports.install()
    model = _initialised(spec, builder, layout, seed)
    if spec.weights is not None:
        load_weights(model, spec.weights, sha256=spec.weights_sha256, norm_statistics=spec.norm == "frozen")
    model = make_dp_safe(model, norm=spec.norm).train()
    if spec.weight_standardisation:
        standardise_weights(model)
    probe, other = _probes(layout)
    _check_output(model, spec.name, layout, probe)
    require_independent_scans(model, probe, other)
    freeze_unused(model, probe[:1])
    _freeze_all_but(model, spec, seed)
    return model


def _initialised(spec: "ModelSpec", builder: "Builder", layout: Layout, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the accelerators' global generators.
        torch.default_generator.manual_seed(seed)
        try:
            return builder(layout, **spec.options)
        except (RuntimeError, MemoryError) as error:  # PyTorch's word for memory that is not there
            raise StudyError(
                f"model {spec.name!r} with options {spec.options} cannot be built: {str(error).splitlines()[0]}; make it smaller."
            ) from error


def _probes(layout: Layout) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn((2, 2, layout.in_channels, *layout.image_size), generator=generator)
    return x, other


def _check_output(model: nn.Module, name: str, layout: Layout, probe: Tensor) -> None:
    size = list(layout.image_size)
    try:
        with torch.no_grad():
            output = model(probe[:1])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise StudyError(f"model {name!r} cannot take image_size={size}: {reason}; use larger images.") from error
    allowed = [(1, layout.out_channels), (1, layout.out_channels, *layout.image_size)]
    if not isinstance(output, Tensor) or output.shape not in allowed:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise StudyError(f"model {name!r} gave {shape} for one scan of {size}; it must give {allowed[0]} or {allowed[1]}.")


def _freeze_all_but(model: nn.Module, spec: "ModelSpec", seed: int) -> None:
    if spec.trainable == "all":
        return
    keep = set(head_parameter_names(model))
    if spec.trainable == "norm":
        keep |= set(norm_parameter_names(model))
    elif spec.trainable == "lora":
        keep |= add_lora(model, spec.lora_rank, but=keep, seed=seed)
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(tensor.requires_grad and name in keep)
