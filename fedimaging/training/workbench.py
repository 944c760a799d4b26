"""What one process needs to train a study: the network, the task, the layout of its vector. Built once a process."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.data.dataset import Dataset
from fedimaging.errors import StudyError, bad_value
from fedimaging.models.spec import ModelSpec
from fedimaging.models.state import head_parameter_names, model_fingerprint, norm_parameter_names
from fedimaging.models.zoo import build_model
from fedimaging.privacy.spec import PrivacySpec
from fedimaging.training.fixed_stage import features_of, last_layer
from fedimaging.training.memory import keep_freed_memory
from fedimaging.training.spec import LocalTraining
from fedimaging.training.task_spec import TaskSpec
from fedimaging.training.tasks import Task, make_task

if TYPE_CHECKING:
    from collections.abc import Iterator

MemoryFormat = Literal["contiguous", "channels_last"]


@dataclass
class Workbench:
    """A network with its trainable tensors laid end to end as one float32 vector, in the model's own order.

    `shared` (V,) bool marks the part of the vector that travels; the rest stays at the hospital. One network serves
    all hospitals of a process: `load` puts a hospital's start into it.
    """

    model: nn.Module
    task: Task
    training: LocalTraining
    privacy: PrivacySpec | None
    rounds: int
    proximal_mu: float
    device: torch.device
    shared: np.ndarray
    initial: np.ndarray
    fingerprint: str
    image_dims: int
    memory_format: torch.memory_format = torch.contiguous_format
    last_layer: nn.Linear | None = None

    def __post_init__(self) -> None:
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]  # walking the modules takes a millisecond
        self._all_shared = bool(self.shared.all())

    @property
    def all_shared(self) -> bool:
        """True where every trainable tensor travels."""
        return self._all_shared

    @property
    def shared_size(self) -> int:
        """Length of the vector that travels."""
        return int(self.shared.sum())

    @property
    def start(self) -> np.ndarray:
        """The first vector that travels (P,), not to be written to: the initial network where it is shared."""
        return self.initial if self._all_shared else self.initial[self.shared]

    def features_of(self, dataset: Dataset) -> np.ndarray | None:
        """What enters the last layer for each scan, where that layer alone trains and scans are not augmented."""
        if self.last_layer is None or self.training.augment is not None:
            return None
        return features_of(self.model, self.last_layer, dataset)

    def network(self, records: "SiteRecords") -> nn.Module:
        """What takes `records.inputs`: the network, or its last layer where the rest was done once and for all."""
        return self.model if records.features is None or self.last_layer is None else self.last_layer

    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors in order."""
        return self._trainable

    def forget_gradients(self) -> None:
        """No tensor has a gradient afterwards."""
        for parameter in self._trainable:
            parameter.grad = None

    def use_memory_format(self, name: MemoryFormat) -> None:
        """Lay activations and kernels out so in memory from here on; the numbers stay the same but for rounding.

        For training without privacy: clipping engines take the layout as it is made.
        """
        dims = self.image_dims
        self.memory_format = _channels_last(dims) if name == "channels_last" else torch.contiguous_format
        for parameter in self.model.parameters():
            if parameter.ndim == dims + 2:
                parameter.data = parameter.data.contiguous(memory_format=self.memory_format)

    def placed(self, x: Tensor) -> Tensor:
        """A batch of scans (S, C, *spatial), or of features (S, F), on the device, in the network's memory format."""
        return x.to(self.device, memory_format=self.memory_format if x.ndim > 2 else torch.contiguous_format)

    def load(self, vector: np.ndarray) -> None:
        """Copy a full vector (V,) into the network."""
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self._trainable), self.pieces(vector))

    def pieces(self, vector: np.ndarray) -> list[Tensor]:
        """A full vector (V,) cut into tensors of the shapes of `parameters()`, on the device."""
        flat = torch.from_numpy(np.require(vector, requirements=("C", "W"))).to(self.device)  # what came by message is read-only
        return [piece for _, piece in self._pieces(flat)]

    def vector(self) -> np.ndarray:
        """The network's trainable tensors as one float32 vector (V,) on the CPU."""
        with torch.no_grad():
            return torch.cat([p.reshape(-1) for p in self.parameters()]).float().cpu().numpy()

    def named_arrays(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """A full vector cut into named arrays, as a weights file holds them."""
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        pieces = self._pieces(torch.from_numpy(vector))
        return {name: piece.numpy().copy() for name, (_, piece) in zip(names, pieces, strict=True)}

    def _pieces(self, flat: Tensor) -> "Iterator[tuple[nn.Parameter, Tensor]]":
        parameters = self.parameters()
        for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            yield parameter, piece.view(parameter.shape)


def build_workbench(
    *, model: ModelSpec, task: TaskSpec, training: LocalTraining, privacy: PrivacySpec | None, rounds: int,
    proximal_mu: float, local_parameters: Literal["none", "norm", "head"], channels: int, image_size: tuple[int, ...],
    seed: int, device: str,
) -> Workbench:
    """Build the network from the study's own specs. Equal arguments give equal weights on every machine."""
    keep_freed_memory()
    where = resolve_device(device)
    task_ = make_task(task)
    network = build_model(model, in_channels=channels, out_channels=task_.out_channels, image_size=image_size, seed=seed)
    network.to(where)
    sizes = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    local = _local_names(network, local_parameters)
    shared = np.concatenate([np.full(size, name not in local) for name, size in sizes.items()])
    bench = Workbench(
        network, task_, training, privacy, rounds, proximal_mu, where, shared,
        np.zeros(len(shared), np.float32), model_fingerprint(network), len(image_size),
    )
    bench.initial = bench.vector().copy()
    bench.last_layer = last_layer(network, (channels, *image_size))
    return bench


def _channels_last(dims: int) -> torch.memory_format:
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def _local_names(network: nn.Module, kind: str) -> set[str]:
    if kind == "none":
        return set()
    names = norm_parameter_names(network) if kind == "norm" else head_parameter_names(network)
    return set(names)


def resolve_device(name: str) -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else the CPU. Error: StudyError for a device this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # also refuses PyTorch's "meta", which holds no numbers
    except (RuntimeError, AssertionError):
        rule = "is not a device of this machine"
        raise StudyError(bad_value("runtime.device", name, rule, "use auto, cpu, cuda or mps")) from None
    return device


@dataclass(frozen=True)
class SiteRecords:
    """One hospital's rows of a data set: training or test. `features` (N, F): see `Workbench.features_of`."""

    dataset: Dataset
    rows: np.ndarray
    features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def patient_ids(self) -> np.ndarray:
        """(R,) the patient of each row."""
        return self.dataset.patient_ids[self.rows]

    @property
    def n_patients(self) -> int:
        """How many patients."""
        return len(np.unique(self.patient_ids))

    def inputs(self, places: np.ndarray) -> Tensor:
        """Scans (S, C, *spatial) float32 at these places of `rows`, or their features (S, F), copied out of the store."""
        source = self.dataset.images if self.features is None else self.features
        return torch.from_numpy(source[self.rows[places]])

    def targets(self, places: np.ndarray, kind: str) -> Tensor:
        """Labels (S,) / (S, L), or masks (S, *spatial) for segmentation, of these places."""
        source = self.dataset.masks if kind == "segmentation" else self.dataset.labels
        if source is None:
            raise StudyError(f"task.kind={kind!r} needs {'masks' if kind == 'segmentation' else 'labels'}; none were read.")
        return torch.from_numpy(source[self.rows[places]])
