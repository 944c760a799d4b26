"""How much memory one scan takes, so that large draws are cut into pieces that fit."""

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping.batch import Losses, UnitBatch, modules_of, trainable

ProofKey = tuple[str, Losses, torch.Size, torch.dtype, torch.device]

_activation_bytes: dict[ProofKey, int] = {}
_structures: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], str]] = WeakKeyDictionary()  # seen in every step


def structure(model: nn.Module) -> str:
    """A name (hex) for what the model computes, but not for its values: module types, modes, shapes, what is trainable."""
    modules = modules_of(model)
    facts: tuple[object, ...] = tuple(p.requires_grad for m in modules for p in m._parameters.values() if p is not None)
    facts += tuple(module.training for module in modules) + tuple(map(type, modules))
    known = _structures.get(model)
    if known is None or known[0] != facts:
        named = model.named_modules()
        parts = [f"{name} {type(module)} {module.training} {module.extra_repr()}" for name, module in named]
        parts += [f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for name, p in model.named_parameters()]
        known = (facts, hashlib.sha256("\n".join(parts).encode()).hexdigest())
        _structures[model] = known
    return known[1]


def proof_key(model: nn.Module, losses: Losses, batch: UnitBatch) -> ProofKey:
    """What a proof about a model, a loss and a shape of scan holds for."""
    return structure(model), losses, batch.x.shape[1:], batch.x.dtype, batch.x.device


def scan_bytes(model: nn.Module, losses: Losses, batch: UnitBatch) -> int:
    """Bytes of activations of one scan, measured by one forward pass on the first scan, once per process."""
    key = proof_key(model, losses, batch)
    if key not in _activation_bytes:
        _activation_bytes[key] = activation_bytes(model, losses, batch.x[:1], batch.y[:1])
    return _activation_bytes[key]


def activation_bytes(model: nn.Module, losses: Losses, x: Tensor, y: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward for these scans; each storage once, no parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = losses(model(x), y).sum()  # held until the hooks close: a freed storage could lend its address
    del total
    return sum(kept.values())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of one gradient of all trainable parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in trainable(model))
