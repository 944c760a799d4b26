"""The part of a network in front of all that it trains: run once for every scan, not at every step.

Where only the last layer trains (`wavelet_net`, or any classifier with `trainable: head`) and no random augmentation
changes the scans, what enters that layer never changes. It is kept beside the decoded images, for all rounds, runs and
worker processes; what is trained, clipped and noised is the same as without.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.data.dataset import Dataset
from fedimaging.files import write_whole

_BATCH = 64


def last_layer(model: nn.Module, image_shape: tuple[int, ...]) -> nn.Linear | None:
    """The linear layer that alone trains and whose output is the network's, proven on two noise scans; None otherwise.

    image_shape: (C, *spatial) of a scan.
    """
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and trained == {id(p) for p in m.parameters()}]
    if len(found) != 1:
        return None
    probe = _probe(model, image_shape)
    with torch.no_grad():
        inputs = _inputs(model, found[0], probe)
        same = len(inputs) == 1 and inputs[0].ndim == 2 and torch.equal(found[0](inputs[0]), model(probe))
    return found[0] if same else None


def features_of(model: nn.Module, head: nn.Linear, dataset: Dataset) -> np.ndarray:
    """(N, F) float32: what enters `head` for every scan of the data set, memory-mapped where the data set has a store.

    Computed once for this fixed part (known by its answer to two noise scans) and this store. Errors as for writing a
    file: OSError.
    """
    if dataset.store_dir is None:
        return _compute(model, head, dataset)
    path = dataset.store_dir / f"features-{_identity(model, head, dataset)}.npy"
    if not path.exists():
        features = _compute(model, head, dataset)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.save(file, features)

        write_whole(path, write)
    return np.asarray(np.load(path, mmap_mode="c"))


def _compute(model: nn.Module, head: nn.Linear, dataset: Dataset) -> np.ndarray:
    device = next(model.parameters()).device
    parts = [np.zeros((0, head.in_features), np.float32)]
    with torch.no_grad():
        for first in range(0, len(dataset), _BATCH):
            x = torch.from_numpy(np.array(dataset.images[first : first + _BATCH]))
            parts.append(_inputs(model, head, x.to(device))[0].cpu().numpy())
    return np.concatenate(parts)


def _identity(model: nn.Module, head: nn.Linear, dataset: Dataset) -> str:
    """Another fixed part, or another version of its code, gives other answers to the same noise."""
    with torch.no_grad():
        answers = _inputs(model, head, _probe(model, dataset.images.shape[1:]))[0].cpu().numpy()
    return hashlib.sha256(answers.tobytes()).hexdigest()[:16]


def _probe(model: nn.Module, image_shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *image_shape, generator=generator).to(next(model.parameters()).device)


def _inputs(model: nn.Module, head: nn.Linear, x: Tensor) -> list[Tensor]:
    """Every input that the layer gets while the network treats x."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        model(x)
    finally:
        handle.remove()
    return seen
