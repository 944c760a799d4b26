"""What an engine proves about a model before its first pass: that no scan enters another's loss, nor its rows of any layer.

Proofs run on a copy of the model, on three scans of random numbers (some with an empty end, as padding leaves it) and on random
parameters: behind a head that starts at zero, as many do, there would be nothing to see. They hold for one model object, loss,
shape of scan, and choice of what trains and in which mode. What depends on a scan's values in a way that such scans do not show
is not seen.
"""

import copy
from collections.abc import Callable, Hashable
from types import MethodType
from weakref import WeakKeyDictionary, WeakMethod, ref

import torch
from torch import Tensor, nn

from fedimaging.errors import PrivacyError
from fedimaging.privacy.clipping.batch import Losses, UnitBatch, Unsupported, scan_losses, trainable
from fedimaging.privacy.clipping.layers import SPREAD
from fedimaging.privacy.clipping.memory import structure
from fedimaging.privacy.clipping.tape import Use, known_layers, recording

Proof = Callable[[nn.Module, Losses, Tensor, Tensor], None]
"""(a copy of the model, losses, x (3, C, *spatial), y (3, ...)): raises Unsupported where it does not hold."""
UnclippedSum = Callable[[nn.Module, Losses, UnitBatch], list[Tensor]]

_SCANS = 3
_AGREEMENT = 1e-2  # relative; float32 rounding reaches 2e-3 behind many kinks and small groups, a wrong gradient tenths
_NEGLIGIBLE = 1e-3  # of all parameters' gradient: below it, a parameter's own may be rounding alone
_MOST_KEPT = 64  # proofs of a model, should somebody make a new loss for every step
_NOT_SPREAD = "a trainable parameter outside the known layers does not meet all scans alike; take engine 'loop' or 'vmap'."
_MIXES = "the model or the loss mixes scans; take engine 'loop'."
_proven: WeakKeyDictionary[nn.Module, set[Hashable]] = WeakKeyDictionary()


def prove_once(kind: str, proof: Proof, model: nn.Module, losses: Losses, batch: UnitBatch) -> None:
    """Run a proof, after one that scans do not enter each other's losses, unless it was run for this model and all else that
    it holds for. The model and PyTorch's random generators are left as they were. Raises Unsupported where a proof fails."""
    key = kind, structure(model), _weak(losses), batch.x.shape[1:], batch.x.dtype, batch.x.device
    known = _proven.setdefault(model, set())
    if key in known:
        return
    with torch.random.fork_rng([batch.x.device] if batch.x.is_cuda else []):
        try:
            of_random = _with_random_parameters(model)
            x, y = _random_scans(batch)
            _prove_losses_are_apart(of_random, losses, x, y, batch)
            proof(of_random, losses, x, y)
        except PrivacyError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError) as error:  # whatever a copy or random numbers make a model meet
            raise Unsupported(f"what engine {kind!r} needs cannot be proven ({error}); take engine 'loop'.") from error
    if len(known) >= _MOST_KEPT:
        known.clear()
    known.add(key)


def _weak(losses: Losses) -> Hashable:
    """A loss by a reference that does not keep it: it may hold the model."""
    try:
        loss = WeakMethod(losses) if isinstance(losses, MethodType) else ref(losses)
        hash(loss)
    except TypeError as error:
        raise Unsupported(f"a loss is not told from others ({error}); take engine 'loop'.") from error
    return loss


def _with_random_parameters(model: nn.Module) -> nn.Module:
    """A copy with random numbers of an ordinary start's size on top of each parameter."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.is_floating_point():
                inputs = parameter[0].numel() if parameter.dim() > 1 else 100
                noise = torch.randn(parameter.shape, generator=generator).to(parameter) / max(1, inputs) ** 0.5
                parameter.data = parameter + noise  # not in place: an expanded one shares its numbers
    return found


def _random_scans(batch: UnitBatch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three scans of random numbers in the batch's shape, of which two end in zeros, for a quarter and a half of each line, in an
    order that the seed changes; with targets of the batch. Where scans are whole numbers, they are the batch's own."""
    rows = (torch.arange(_SCANS) + seed) % len(batch.x)
    x, y = batch.x[rows], batch.y[rows]
    if x.is_floating_point():
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)
        if x.dim() > 2:
            for scan, order in enumerate(((1, 0, 2), (2, 1, 0))[seed % 2]):
                x[scan, ..., x.shape[-1] - order * x.shape[-1] // 4 :] = 0
    return x, y


def _prove_losses_are_apart(model: nn.Module, losses: Losses, x: Tensor, y: Tensor, batch: UnitBatch) -> None:
    """A scan's loss must be the same, but for rounding, when all others are exchanged."""
    values = _values(model, losses, x, y)
    others_x, others_y = _random_scans(batch, seed=1)
    for scan in range(_SCANS):
        own = torch.arange(_SCANS, device=x.device) == scan
        mixed = [torch.where(own.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in ((x, others_x), (y, others_y))]
        found = _values(model, losses, *mixed)[scan]
        allowed = torch.finfo(values.dtype).eps ** 0.5 * (1 + values[scan].abs())
        if not (found - values[scan]).abs() <= allowed:
            raise Unsupported(_MIXES)


def _values(model: nn.Module, losses: Losses, x: Tensor, y: Tensor) -> Tensor:
    with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():  # the same dropout every time
        return scan_losses(losses, model(x), y)


def prove_rows_are_scans(model: nn.Module, losses: Losses, x: Tensor, y: Tensor, summed: UnclippedSum) -> None:
    """Each scan's loss must reach only that scan's rows of every layer; `summed` is tried where a rule needs it.

    This catches a network that puts another axis first, and one that mixes scans. Raises Unsupported.
    """
    rules = [rule for rule, _ in known_layers(model).values()]
    try:
        for scan in range(_SCANS):
            with recording(model, _SCANS) as tape:
                loss = scan_losses(losses, model(x), y)[scan]
            tape.sweep(loss, _NothingOfOthers(scan))
    except (RuntimeError, LookupError, TypeError, ValueError, PrivacyError) as error:
        if SPREAD in rules and not isinstance(error, Unsupported):  # copies where one parameter was expected
            raise Unsupported(_NOT_SPREAD) from error
        raise
    if any(rule.tried for rule in rules):
        _try_against_autograd(model, losses, x, y, summed)


def _try_against_autograd(model: nn.Module, losses: Losses, x: Tensor, y: Tensor, summed: UnclippedSum) -> None:
    """Raises Unsupported where the scans' gradients, added up, are not autograd's own."""
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices):
        found = summed(model, losses, UnitBatch(x, y, torch.ones(_SCANS, dtype=torch.int64)))
    with torch.random.fork_rng(devices):  # the same dropout
        total = scan_losses(losses, model(x), y).sum()
        expected = torch.autograd.grad(total, trainable(model), materialize_grads=True, allow_unused=True)
    negligible = _NEGLIGIBLE * torch.stack([theirs.norm() for theirs in expected]).norm()
    for ours, theirs in zip(found, expected, strict=True):
        if not (ours - theirs).norm() <= _AGREEMENT * (theirs.norm() + negligible):
            raise Unsupported("a layer computes otherwise than expected; take engine 'loop' or 'vmap'.")


class _NothingOfOthers:
    """Refuses gradients in the rows of scans that have no loss."""

    def __init__(self, own: int) -> None:
        self.others = [scan for scan in range(_SCANS) if scan != own]

    def enter(self, use: Use, g: Tensor, alone: bool) -> None:
        self._look(g)

    def enter_by_scan(self, parameter: nn.Parameter, by_scan: Tensor, alone: bool) -> None:
        self._look(by_scan.reshape(_SCANS, -1))

    def _look(self, g: Tensor) -> None:
        if bool(g[self.others].any()):
            raise Unsupported("the rows inside the model are not single scans; take engine 'loop'.")
