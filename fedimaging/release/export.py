"""The network in two files that need no fedimaging: its tensors (model.pt), and TorchScript (model.ts), proven equal."""

import warnings
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.errors import ReleaseError
from fedimaging.files import write_whole
from fedimaging.models.build import build
from fedimaging.models.layout import Layout
from fedimaging.models.zoo import MODELS
from fedimaging.release.inference import load_script
from fedimaging.study.schema import Study
from fedimaging.training.tasks import make_task

TOLERANCE = 1e-5
_RANDOM_BATCHES = 4


def export(network: nn.Module, images: np.ndarray, folder: Path) -> dict[str, Any]:
    """Write FOLDER/model.pt and FOLDER/model.ts of a network in evaluation mode; returns what comparing them showed.

    images (N, C, *spatial) float32: real ones to compare on, beside random and extreme ones; none of them is written.
    Error: ReleaseError where the network cannot be exported, or the export differs by more than 1e-5 (absolute, of an
    output, and relative where outputs are above 1).
    """
    shape = images.shape[1:]
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    write_whole(folder / "model.pt", lambda path: _save_state(state, path))
    write_whole(folder / "model.ts", lambda path: path.write_bytes(_script(network, shape)))
    loaded = load_script(folder / "model.ts")
    largest, compared = 0.0, 0
    with torch.inference_mode():
        for x in _inputs(images):
            one, other = network(x), loaded(x)
            largest = max(largest, float(((one - other).abs() / one.abs().clamp_min(1)).max()))
            compared += len(x)
    if not largest <= TOLERANCE:  # NaN, too
        raise ReleaseError(f"the exported network differs from the trained one by {largest:.2g}, above {TOLERANCE:g}.")
    return {"format": "TorchScript", "compared_inputs": compared, "largest_difference": largest, "tolerance": TOLERANCE}


def _save_state(state: dict[str, Tensor], path: Path) -> None:
    """By way of memory, so that the archive inside the file has one name whoever writes it, and the same bytes."""
    content = BytesIO()
    torch.save(state, content)
    path.write_bytes(content.getvalue())


def _script(network: nn.Module, shape: tuple[int, ...]) -> bytes:
    """The network as recorded while it treats two scans, without the notes on where its source lies on this machine."""
    content = BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.jit.save(torch.jit.trace(network, torch.rand(2, *shape), check_trace=False), content)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ReleaseError(f"{type(network).__name__} cannot be exported: {str(error).splitlines()[0]}") from None
    kept = BytesIO()
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(kept, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return kept.getvalue()


def _inputs(images: np.ndarray) -> Iterator[Tensor]:
    """Random scans in batches of several sizes, extreme ones, and real ones."""
    shape, generator = images.shape[1:], torch.Generator().manual_seed(0)
    for batch in range(1, _RANDOM_BATCHES + 1):
        yield torch.rand(batch, *shape, generator=generator)
        yield 3 * torch.randn(batch, *shape, generator=generator)
    for value in (0.0, 1.0, -1.0, 100.0):
        yield torch.full((1, *shape), value)
    yield torch.from_numpy(np.ascontiguousarray(images[:16]))


def rebuilt(study: Study, weights: Path) -> nn.Module:
    """The study's network with the tensors of model.pt, in evaluation mode on the CPU: layers can be looked into, which
    TorchScript does not allow. Error: ReleaseError where the file is not of this network."""
    task, data = make_task(study.task), study.data
    spec = study.model.model_copy(update={"weights": None})  # what was in that file is in model.pt
    network = build(spec, MODELS[spec.name], Layout(data.channels, task.out_channels, tuple(data.image_size)), study.seed)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ReleaseError(f"{weights.name} is not of the study's network: {str(error).splitlines()[0]}") from None
    return network.eval()
