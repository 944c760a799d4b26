"""What an engine proves about a model before its first pass: that the rows of its layers are single scans'.

Proofs run on two scans of random numbers and on random parameters: behind a head that starts at zero, as many do, there would be
nothing to see. They hold for one model object, loss, shape of scan, and choice of what trains and in which mode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedimaging.errors import PrivacyError
from fedimaging.privacy.clipping.batch import Losses, UnitBatch, Unsupported, scan_losses, trainable
from fedimaging.privacy.clipping.layers import SPREAD
from fedimaging.privacy.clipping.memory import ProofKey, proof_key
from fedimaging.privacy.clipping.tape import Use, known_layers, recording

UnclippedSum = Callable[[nn.Module, Losses, UnitBatch], list[Tensor]]

_AGREEMENT = 1e-3  # relative; far above rounding, far below a wrong gradient
_NEGLIGIBLE = 1e-3  # of all parameters' gradient: below it, a parameter's own may be rounding alone
_NOT_SPREAD = "a trainable parameter outside the known layers does not meet all scans alike; take engine 'loop' or 'vmap'."
_proven: WeakKeyDictionary[nn.Module, set[tuple[str, ProofKey]]] = WeakKeyDictionary()


def prove_once(kind: str, proof: Callable[[], None], model: nn.Module, losses: Losses, batch: UnitBatch) -> None:
    """Run a proof unless it was run for this model and all else that it holds for. It leaves parameters and the state of
    random generators as they were. Raises what the proof raises."""
    key = kind, proof_key(model, losses, batch)
    known = _proven.setdefault(model, set())
    if key in known:
        return
    with _random_parameters(model), torch.random.fork_rng([batch.x.device] if batch.x.is_cuda else []):
        proof()
    known.add(key)


@contextmanager
def _random_parameters(model: nn.Module) -> Iterator[None]:
    """Random numbers of an ordinary start's size on top of each parameter, for the while."""
    generator = torch.Generator().manual_seed(0)
    kept = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        with torch.no_grad():
            for parameter, old in kept:
                inputs = old[0].numel() if old.dim() > 1 else 100
                parameter.add_(torch.randn(old.shape, generator=generator).to(old) / max(1, inputs) ** 0.5)
        yield
    finally:
        with torch.no_grad():
            for parameter, old in kept:
                parameter.copy_(old)


def two_scans(batch: UnitBatch) -> tuple[Tensor, Tensor]:
    """Two scans of random numbers in the batch's shape, with the first scan's target: to try a model on."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *batch.x.shape[1:], generator=generator, dtype=batch.x.dtype)
    return x.to(batch.x.device), torch.stack([batch.y[0], batch.y[0]])


def prove_rows_are_scans(model: nn.Module, losses: Losses, batch: UnitBatch, summed: UnclippedSum) -> None:
    """Each of two scans' losses must reach only that scan's rows of every layer; `summed` is tried where a rule needs it.

    This catches a network that puts another axis first, and one that mixes scans. Raises Unsupported.
    """
    x, y = two_scans(batch)
    rules = [rule for rule, _ in known_layers(model).values()]
    try:
        for scan in (0, 1):
            with recording(model, 2) as tape:
                loss = scan_losses(losses, model(x), y)[scan]
            tape.sweep(loss, _NothingOfTheOther(1 - scan))
    except (RuntimeError, LookupError, TypeError, ValueError, PrivacyError) as error:
        if SPREAD in rules and not isinstance(error, Unsupported):  # copies where one parameter was expected
            raise Unsupported(_NOT_SPREAD) from error
        raise
    if any(rule.tried for rule in rules):
        _try_against_autograd(model, losses, x, y, summed)


def _try_against_autograd(model: nn.Module, losses: Losses, x: Tensor, y: Tensor, summed: UnclippedSum) -> None:
    """Raises Unsupported where the gradients of two scans, added up, are not autograd's own."""
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices):
        found = summed(model, losses, UnitBatch(x, y, torch.ones(2, dtype=torch.int64)))
    with torch.random.fork_rng(devices):  # the same dropout
        total = scan_losses(losses, model(x), y).sum()
        expected = torch.autograd.grad(total, trainable(model), materialize_grads=True, allow_unused=True)
    negligible = _NEGLIGIBLE * torch.stack([theirs.norm() for theirs in expected]).norm()
    for ours, theirs in zip(found, expected, strict=True):
        if not (ours - theirs).norm() <= _AGREEMENT * (theirs.norm() + negligible):
            raise Unsupported("a layer computes otherwise than expected; take engine 'loop' or 'vmap'.")


class _NothingOfTheOther:
    """Refuses gradients in the rows of the one of two scans that has no loss."""

    def __init__(self, other: int) -> None:
        self.other = other

    def enter(self, use: Use, g: Tensor, alone: bool) -> None:
        self._look(g)

    def enter_by_scan(self, parameter: nn.Parameter, by_scan: Tensor, alone: bool) -> None:
        self._look(by_scan.reshape(2, -1))

    def _look(self, g: Tensor) -> None:
        if bool(g[self.other].any()):
            raise Unsupported("the rows inside the model are not single scans; take engine 'loop'.")
