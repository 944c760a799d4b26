"""What every engine shares: the batch of units, the clipped sum it returns, the clip itself, and the memory limit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.errors import PrivacyError, bad_value

Losses = Callable[[Tensor, Tensor], Tensor]
"""(outputs (S, ...), targets (S, ...)) -> (S,): each scan's own loss, from its own output and target alone."""

_RUN = 4096
NORM_TYPES = {"mps": torch.float32}
"""The type that norms are added up in, by device; float64 where nothing is said. Apple's GPUs have no float64."""


class Unsupported(PrivacyError):
    """This engine cannot give exact unit gradients for this model; another one (`loop` always) can."""


@dataclass(frozen=True)
class ClippedSum:
    """Sum over units of clip(unit gradient), and each unit's norm before the clip.

    sum: one tensor per trainable parameter, in the order of `model.parameters()`.
    norms: (U,) L2 norm over all trainable parameters together; inf or NaN marks a unit that was left out.
    clip_norm: C. Adding or removing one unit moves the whole sum by at most `sensitivity` = C in L2 norm (replacing
    one, by 2 C), up to the rounding of the floating-point type. `norms` are private and must not leave the site.
    """

    sum: list[Tensor]
    norms: Tensor
    clip_norm: float

    @property
    def sensitivity(self) -> float:
        """The most by which adding or removing one unit moves `sum`, in L2 norm."""
        return self.clip_norm


class Engine(Protocol):
    """`clipped_sum` by one particular method: see `clipping.clipped_sum` for arguments and guarantees."""

    def __call__(
        self,
        model: nn.Module,
        losses: Losses,
        x: Tensor,
        y: Tensor,
        unit_of_scan: Tensor,
        n_units: int,
        clip_norm: float,
        *,
        memory_mb: float | None = None,
    ) -> ClippedSum: ...


@dataclass(frozen=True)
class UnitBatch:
    """The scans of a step's units. `counts` (U,) scans per unit, each at least 1 when an engine sees it, on the CPU;
    scans lie unit after unit."""

    x: Tensor
    y: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def unit_of_scan(self) -> Tensor:
        """(S,) int64 on the CPU."""
        return torch.repeat_interleave(torch.arange(len(self)), self.counts)

    @cached_property
    def even(self) -> int | None:
        """The number of scans of every unit, where all have as many."""
        counts = self.counts.numpy()
        return int(counts[0]) if len(counts) and (counts == counts[0]).all() else None

    def weights_like(self, values: Tensor) -> Tensor:
        """(S,) one over the number of scans of the scan's unit: a unit's loss is the mean of its scans' losses."""
        if self.even is not None:
            return values.new_full((len(self.x),), 1.0 / self.even)
        return torch.repeat_interleave(1.0 / self.counts.double(), self.counts).to(values)

    def spread(self, values: Tensor) -> Tensor:
        """A value of each unit (U,), on the scans' device -> of each scan (S,)."""
        if self.even is not None:
            return values.repeat_interleave(self.even)
        return torch.repeat_interleave(values, self.counts.to(values.device), output_size=len(self.x))

    def units(self, first: int, last: int) -> "UnitBatch":
        """Units first..last-1."""
        if first == 0 and last == len(self):
            return self
        begin, end = int(self.counts[:first].sum()), int(self.counts[:last].sum())
        return UnitBatch(self.x[begin:end], self.y[begin:end], self.counts[first:last])

    def choose(self, units: Tensor) -> "UnitBatch":
        """The given units (K,) int64, in the given order."""
        if torch.equal(units, torch.arange(len(self))):
            return self
        starts = self.counts.cumsum(0) - self.counts
        counts = self.counts[units]
        offsets = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        rows = (torch.repeat_interleave(starts[units], counts) + offsets).to(self.x.device)
        return UnitBatch(self.x[rows], self.y[rows], counts)


def unit_batch(x: Tensor, y: Tensor, unit_of_scan: Tensor, n_units: int) -> UnitBatch:
    """Check that rows, targets and units belong together. Raises PrivacyError where they do not."""
    owners = unit_of_scan.numpy(force=True).astype(np.int64, copy=False)
    if not len(x) == len(y) == len(owners):
        given = (len(x), len(y), len(owners))
        raise PrivacyError(bad_value("rows of x, y, unit_of_scan", given, "must be equal: one row is one scan"))
    if len(owners) and not ((owners[1:] >= owners[:-1]).all() and owners[0] >= 0 and owners[-1] < n_units):
        text = bad_value("unit_of_scan", owners.tolist()[:20], f"must be sorted and lie in 0..{n_units - 1}")
        raise PrivacyError(text)
    return UnitBatch(x, y, torch.from_numpy(np.bincount(owners, minlength=n_units)))


def scan_losses(losses: Losses, outputs: Tensor, y: Tensor) -> Tensor:
    """The losses, after proving that there is exactly one for each scan: a scalar loss would undo the clip."""
    values = losses(outputs, y)
    if values.shape != (len(y),):
        rule = f"must be ({len(y)},): one loss for each scan"
        raise PrivacyError(bad_value("shape of the losses", tuple(values.shape), rule, "reduce within a scan only"))
    return values


def modules_of(model: nn.Module) -> list[nn.Module]:
    """What `model.modules()` gives, sooner: every step goes through them."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting.extend(part for part in reversed(module._modules.values()) if part is not None)
    return list(found)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients are summed, in the model's order."""
    found = (p for module in modules_of(model) for p in module._parameters.values() if p is not None and p.requires_grad)
    return list(dict.fromkeys(found))


def norms_of(unit_gradients: list[Tensor]) -> Tensor:
    """(U,) norms, in `norm_type`, over all parameters, from each parameter's unit gradients (U, *shape)."""
    return torch.stack([squared_norms(part.reshape(len(part), -1)) for part in unit_gradients]).sum(0).sqrt()


def squared_norms(x: Tensor) -> Tensor:
    """(..., R) -> (...) in `norm_type`. Runs of numbers are added up in x's own type, the runs in float64: over millions of
    float32 numbers a plain sum would be wrong in the fifth digit, and so would be the clip."""
    whole, wide = x.shape[-1] // _RUN * _RUN, norm_type(x.device)
    rest = x[..., whole:] if whole else x
    total = torch.linalg.vector_norm(rest, dim=-1).to(wide).square_()
    if whole:
        runs = torch.linalg.vector_norm(x[..., :whole].unflatten(-1, (-1, _RUN)), dim=-1)
        total += runs.to(wide).square_().sum(-1)
    return total


def norm_type(device: torch.device) -> torch.dtype:
    """The widest type of the device that norms can have."""
    return NORM_TYPES.get(device.type, torch.float64)


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """(U,) min(1, C / norm); 1 for a zero gradient. Only for finite norms."""
    return (clip_norm / norms).clamp(max=1.0)


def zero_sum(model: nn.Module) -> list[Tensor]:
    """A zero gradient for every trainable parameter, contiguous."""
    return [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in trainable(model)]


def micro_batches(batch: UnitBatch, unit_bytes: Callable[[int], float], limit: float) -> Iterator[tuple[int, int]]:
    """Consecutive runs [first, last) of units whose bytes stay within the limit; a unit is never split.

    A single unit above the limit is a run of its own: its scans must be seen together.
    """
    first, used = 0, 0.0
    for unit, count in enumerate(batch.counts.tolist()):
        need = unit_bytes(count)
        if unit > first and used + need > limit:
            yield first, unit
            first, used = unit, 0.0
        used += need
    if first < len(batch):
        yield first, len(batch)
