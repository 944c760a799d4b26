"""The trainable tensors of a network as named float32 arrays: the only thing of it that ever leaves a hospital."""

import hashlib

import numpy as np
import torch
from torch import nn

from fedimaging.errors import RunError
from fedimaging.models.dp_safe import NORM_LAYERS
from fedimaging.results import Arrays


def trainable_state(model: nn.Module) -> Arrays:
    """A float32 copy of every parameter that requires a gradient, in the model's own order; no buffers."""
    return {
        name: tensor.detach().cpu().numpy().astype(np.float32, copy=True)
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    }


def load_trainable(model: nn.Module, arrays: Arrays) -> None:
    """Copy `arrays` into the trainable parameters of `model`, in place, on their device.

    All or nothing. Error: RunError unless the names are exactly the trainable ones and every array is float32, of the
    parameter's shape, and finite.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing, unknown = sorted(trainable.keys() - arrays.keys()), sorted(arrays.keys() - trainable.keys())
    if missing or unknown:
        raise RunError(f"weights do not fit the model: missing {_some(missing)}; not in the model: {_some(unknown)}.")
    for name, parameter in trainable.items():
        _check(name, arrays[name], tuple(parameter.shape))
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(torch.from_numpy(np.array(arrays[name])))


def model_fingerprint(model: nn.Module) -> str:
    """sha256 (hex) of the names and shapes of all parameters and buffers, of which are trainable, and of the content
    of the weights file the model was built from, if any. Two hospitals with the same fingerprint train the same
    network from the same frozen part; the values of trainable tensors are not in it."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.requires_grad}\n".encode())
    for name, tensor in model.named_buffers():
        digest.update(f"{name} {tuple(tensor.shape)} buffer\n".encode())
    digest.update(str(getattr(model, "weights_sha256", "")).encode())
    return digest.hexdigest()


def norm_parameter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights and biases of normalisation layers (kept local by FedBN-style training)."""
    inside = {id(p) for module in model.modules() if isinstance(module, NORM_LAYERS) for p in module.parameters()}
    return tuple(name for name, tensor in model.named_parameters() if id(tensor) in inside)


def head_parameter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the last layer: the module that owns the last registered parameter."""
    names = [name for name, _ in model.named_parameters()]
    owner = names[-1].rpartition(".")[0]
    return tuple(name for name in names if name.rpartition(".")[0] == owner)


def _check(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or array.shape != shape:
        raise RunError(f"weights do not fit the model: {name} is {array.dtype} {array.shape}, must be float32 {shape}.")
    if not np.isfinite(array).all():
        raise RunError(f"weights are not usable: {name} has NaN or infinite values.")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
