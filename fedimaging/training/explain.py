"""Where in a scan a network found its answer, and where a segmentation is unsure: maps to look at, never a proof.

Legend: B scans, C channels, K outputs, * spatial sizes. Every map is of one scan and leaves the network as it was.
`experiments/explanation` measures on phantoms how much of a map lies in the lesion, and that other weights give another map.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.errors import StudyError, bad_value, unknown_name
from fedimaging.training.explain_layer import Target, target_layers

Method = Literal["grad_cam", "occlusion"]
METHODS: tuple[Method, ...] = ("grad_cam", "occlusion")

_OCCLUDED_SHARE = 8  # a hidden place is an eighth of each side
_FLOOR = 0.05  # of a map's greatest value: a place that one layer does not mark at all is not lost
_OVERLAP = {2: 0.5, 3: 0.25}  # of neighbouring hidden places; volumes would take too many otherwise


@dataclass(frozen=True)
class Explanation:
    """`values` (*spatial) float32, 0 to 1, 1 at the strongest place; all 0 where nothing speaks for the class.

    `peak`: what 1 stands for; for `occlusion` the fall of the class's log-odds when that place is hidden, for `grad_cam` a number
    without a unit. `why`: which layers, or why this method.
    """

    values: np.ndarray
    method: Method
    peak: float
    why: str

    @property
    def meaning(self) -> str:
        """For whoever looks at the picture."""
        return MEANINGS[self.method]


MEANINGS: dict[Method, str] = {
    "grad_cam": "Grad-CAM: where features of the network raise the log-odds of the class that it gave",
    "occlusion": "occlusion: how far the log-odds of the class fall when a place is replaced by its blurred surroundings",
}
UNCERTAINTY = (
    "uncertainty: entropy of the class probabilities of a pixel, over small shifts of the scan; it does not show where the "
    "network is sure and wrong"
)


def saliency(
    model: nn.Module, x_CHW: Tensor | np.ndarray, class_index: int, method: Literal["auto", "grad_cam", "occlusion"] = "auto", *,
    multilabel: bool = False,
) -> Explanation:
    """What in a scan (C, *spatial), 2-D or 3-D, speaks for `class_index` rather than for the other classes.

    Works for every classifier of the zoo. `auto`: Grad-CAM (Selvaraju et al. 2017) at the layers that `target_layers` chooses;
    occlusion (Zeiler and Fergus 2014) where a network has none. Both are MONAI's, and both explain the log-odds of the class
    (of the label, with `multilabel`). The last map of a network for small pictures has 3 to 6 cells a side, so that finer
    layers take part (after LayerCAM, Jiang et al. 2021), and there each cell is weighed by its own gradient in place of the
    mean over all cells (HiResCAM, Draelos and Carin 2020); before a global mean the two are the same. Deterministic.
    Error: StudyError for a class, method or network that does not fit.
    """
    x = _batch_of_one(x_CHW).cpu()
    if method not in ("auto", *METHODS):
        raise StudyError(unknown_name("method", method, ("auto", *METHODS)))
    network = copy.deepcopy(model).cpu().eval().requires_grad_(True)
    evidence = _Evidence(network, multilabel)
    with torch.no_grad():
        outputs = evidence(x)
    if outputs.ndim != 2 or not 0 <= class_index < outputs.shape[1]:
        rule = f"is none of the {outputs.shape[1]} classes" if outputs.ndim == 2 else "asks a network that segments"
        raise StudyError(bad_value("class_index", class_index, rule, "see `uncertainty` for a segmentation"))
    targets = [] if method == "occlusion" else target_layers(network, x)
    if targets:
        why = f"layers: {', '.join(f'{one.name} ({_size_words(one.grid)})' for one in targets)}"
        return _scaled(_grad_cam(evidence, targets, x, class_index), "grad_cam", why)
    if method == "grad_cam":
        rule = "needs a layer that gives a map, and this network has none"
        raise StudyError(bad_value("method", method, rule, "take occlusion"))
    why = "as asked" if method == "occlusion" else "this network has no layer that gives a map, which Grad-CAM needs"
    return _scaled(_occlusion(network, multilabel, x, class_index), "occlusion", why)


def uncertainty(model: nn.Module, x_CHW: Tensor | np.ndarray, *, views: bool = True) -> np.ndarray:
    """(*spatial) float32: the entropy of a segmentation's class probabilities, as a share of its greatest value log K.

    With `views` of probabilities averaged over the scan and copies moved by one pixel either way along each axis, so that
    borders which move with the scan count as unsure. It says where the network hesitates, not where it is wrong.
    """
    was_training, device = model.training, next(model.parameters()).device
    x = _batch_of_one(x_CHW).to(device)
    moves = [(0, 2), *((step, axis) for axis in range(2, x.ndim) for step in (-1, 1))] if views else [(0, 2)]
    model.eval()
    with torch.inference_mode():
        seen = [model(x.roll(step, axis)).float().softmax(1).roll(-step, axis) for step, axis in moves]
    model.train(was_training)
    mean = torch.stack(seen).mean(0)
    entropy = torch.special.entr(mean).sum(1)[0] / np.log(mean.shape[1])
    return entropy.clamp(0, 1).cpu().numpy().astype(np.float32)


def _batch_of_one(x_CHW: Tensor | np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(x_CHW, np.float32)) if isinstance(x_CHW, np.ndarray) else x_CHW.detach().float()
    return tensor[None]


class _Evidence(nn.Module):
    """Log-odds of each class against all others in place of logits, which a common shift of all classes would move."""

    def __init__(self, network: nn.Module, multilabel: bool, background: Tensor | float = 0.0) -> None:
        super().__init__()
        self.network, self.multilabel, self.background = network, multilabel, background

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) -> (B, K)."""
        outputs: Tensor = self.network(x + self.background)
        if self.multilabel or outputs.ndim != 2 or outputs.shape[1] < 2:
            return outputs
        others = [torch.cat([outputs[:, :k], outputs[:, k + 1 :]], 1).logsumexp(1) for k in range(outputs.shape[1])]
        return outputs - torch.stack(others, 1)


def _grad_cam(evidence: _Evidence, targets: Sequence[Target], x: Tensor, class_index: int) -> Tensor:
    """Each layer's map as a share of its greatest value, multiplied: what one layer alone marks stays faint."""
    from monai.visualize import GradCAM

    class LocalGradCAM(GradCAM):
        """Weighs each cell by its own gradient, and reads tokens as a grid."""

        def compute_map(  # type: ignore[override]
            self, x: Any, class_idx: Any = None, retain_graph: Any = False, layer_idx: Any = -1, **kwargs: Any
        ) -> Tensor:
            _, activations, gradients = self.nn_module(x, class_idx=class_idx, retain_graph=retain_graph, **kwargs)
            spatial = targets[layer_idx].spatial
            weighed: Tensor = spatial(activations[layer_idx]) * spatial(gradients[layer_idx])
            return weighed.sum(1, keepdim=True).relu()

    names: Any = [f"network.{target.name}" for target in targets]
    cam = LocalGradCAM(evidence, names, postprocessing=lambda upsampled: upsampled)
    watched = x.clone().requires_grad_(True)
    maps = torch.stack([cam(watched, class_idx=class_index, layer_idx=k)[0, 0].detach() for k in range(len(targets))])
    peaks = maps.flatten(1).max(1).values
    if not peaks.min() > 0:
        return torch.zeros_like(maps[0])
    shares = maps / peaks.view(-1, *[1] * (maps.ndim - 1))
    return ((shares + _FLOOR).prod(0) - _FLOOR ** len(targets)).relu()


def _occlusion(network: nn.Module, multilabel: bool, x: Tensor, class_index: int) -> Tensor:
    from monai.visualize import OcclusionSensitivity

    sides = x.shape[2:]
    hidden = [max(2, -(-side // _OCCLUDED_SHARE)) for side in sides]
    blurred = _blur(x, hidden)
    evidence = _Evidence(network, multilabel, blurred)
    occlude = OcclusionSensitivity(
        evidence, mask_size=hidden, n_batch=64, verbose=False, mode="gaussian", overlap=_OVERLAP[len(sides)], activate=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)  # MONAI 1.6 under PyTorch 2.9
        found, _ = occlude(x - blurred)
    with torch.no_grad():
        whole = evidence(x - blurred)[0, class_index]
    return (whole - torch.as_tensor(found.numpy())[0, class_index]).relu()


def _blur(x: Tensor, sigmas: list[int]) -> Tensor:
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(x.numpy(), (0, 0, *sigmas), mode="nearest")
    return torch.from_numpy(np.ascontiguousarray(blurred, np.float32))


def _size_words(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))


def _scaled(raw: Tensor, method: Method, why: str) -> Explanation:
    values = np.nan_to_num(raw.cpu().numpy().astype(np.float32))
    peak = float(values.max())
    return Explanation(values / peak if peak > 0 else np.zeros_like(values), method, peak, why)
