"""Read pretrained weights from a local file without running anything in it."""

import hashlib
import pickle
import re
from io import BytesIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from fedimaging.errors import StudyError, bad_value
from fedimaging.models.state import head_parameter_names

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$")


def load_weights(model: nn.Module, path: str, *, sha256: str | None, norm_statistics: bool) -> None:
    """Copy a state dict (.safetensors, or .pt/.pth read with weights_only) into `model`, in place, and remember the
    file's sha256 as `model.weights_sha256`.

    A head of another number of classes keeps its random start; a first convolution for 3 colours is summed for 1 (a
    grey image then gives what its three equal copies would). Everything else must be there in its shape; with
    norm_statistics, so must running means and variances; so must the buffers that the network names in `FITTED`.
    Error: StudyError naming the file and what is wrong.
    """
    content = _read(Path(path))
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise StudyError(f"weights {path!r} have sha256 {digest}, the study asks for {sha256}; use the study's file.")
    given = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in _parse(content, path).items()}
    head = set(head_parameter_names(model))
    own: dict[str, Tensor] = dict(model.named_parameters())
    if norm_statistics:
        own |= {k: v for k, v in model.named_buffers() if k.endswith(_STATISTICS[:2])}
    own |= {k: v for k, v in model.named_buffers() if k in getattr(model, "FITTED", ())}
    fitted = {name: _fit(given[name], own[name]) for name in own if name in given}
    lacking = [n for n in own if n not in head and (n not in fitted or fitted[n].shape != own[n].shape)]
    if lacking:
        raise StudyError(
            f"weights {path!r} do not fit {type(model).__name__}: {len(lacking)} tensors are missing or of another "
            f"shape, first {lacking[0]!r} {tuple(own[lacking[0]].shape)}; give the weights of this very network."
        )
    with torch.no_grad():
        for name, tensor in fitted.items():
            if tensor.shape == own[name].shape:
                own[name].copy_(tensor)
    model.weights_sha256 = digest  # type: ignore[assignment]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StudyError(f"weights {str(path)!r} cannot be read: {error.strerror}; give an existing file.") from None


def _parse(content: bytes, path: str) -> dict[str, Tensor]:
    suffix = Path(path).suffix
    if suffix not in (".safetensors", ".pt", ".pth"):
        raise StudyError(bad_value("model.weights", path, "must end in .safetensors, .pt or .pth"))
    try:
        if suffix == ".safetensors":
            tree = load_safetensors(content)
        else:
            tree = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StudyError(f"weights {path!r} are not a plain state dict: {reason}.") from None
    if not isinstance(tree, dict) or not all(isinstance(v, Tensor) for v in tree.values()):
        raise StudyError(f"weights {path!r} are not a plain state dict (names to tensors); save model.state_dict().")
    return tree


def _fit(tensor: Tensor, target: Tensor) -> Tensor:
    one_for_three = tensor.dim() == target.dim() == 4 and (tensor.shape[1], target.shape[1]) == (3, 1)
    return tensor.sum(1, keepdim=True) if one_for_three and tensor.shape[0] == target.shape[0] else tensor
