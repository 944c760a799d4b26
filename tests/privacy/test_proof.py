"""What engine `fused` proves before it follows a model: each case gave a wrong sum, or was refused, before it was."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedimaging.privacy.clipping import Unsupported, clipped_sum
from tests.privacy.privacy_networks import class_losses, flat

UNITS = torch.tensor([0, 1, 1, 2, 3, 3])


class Own(nn.Module):
    """A network with a parameter of its own, that stands before a linear head."""

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own, self.use, self.head = nn.Parameter(torch.randn(shape)), use, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.use(x, self.own)).flatten(1))


def _batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 4, 8, generator=generator, dtype=dtype)
    return x, torch.randint(0, 3, (6,), generator=generator), UNITS, 4


def _ready(model: nn.Module) -> nn.Module:
    model = model.double()
    model(_batch()[0])
    return model


def _difference(model: nn.Module, losses: Callable[[Tensor, Tensor], Tensor] = class_losses) -> float:
    sums = [flat(clipped_sum(model, losses, *_batch(), 0.1, engine=engine).sum) for engine in ("fused", "loop")]
    return float((sums[0] - sums[1]).norm() / sums[1].norm())


@pytest.mark.parametrize("model", [
    Own((1, 4, 8), lambda x, p: x + p), Own((1, 1, 8), lambda x, p: x * p * p),
    Own((1, 2, 8), lambda x, p: torch.cat([p.expand(len(x), -1, -1), x], dim=1)),
], ids=["positions", "twice", "token"])  # fmt: skip
def test_parameters_that_meet_all_scans_alike_are_followed(model: nn.Module) -> None:
    assert _difference(_ready(model)) < 1e-12


@pytest.mark.parametrize("model", [
    Own((1,), lambda x, p: x * p[0]), Own((1, 4, 8), lambda x, p: x + p[:1]), Own((1, 4, 8), lambda x, p: x + p.mean(0)),
    Own((1, 4, 8), lambda x, p: x + p.repeat_interleave(len(x), 0)[: len(x)]), Own((1, 8), lambda x, p: F.linear(x, p)[..., :1]),
    Own((1, 4, 3), lambda x, p: F.conv1d(x, p)[:, :1]), Own((1, 8), lambda x, p: (x[:, :1] * p)[:, 0]),
    Own((1,), lambda x, p: x * p), Own((1, 1, 8), lambda x, p: (x.transpose(0, 1) * p).transpose(0, 1)),
    Own((1, 8), lambda x, p: F.linear(x, p).squeeze(2)),
], ids=["first", "first kept", "mean", "repeated", "linear", "convolution", "lines", "scale", "another axis", "squeezed"])
def test_copies_of_parameters_that_do_not_are_refused(model: nn.Module) -> None:
    """Copies, one a scan, would all have served the first scan, or other places than scans."""
    with pytest.raises(Unsupported):
        _difference(_ready(model))


@pytest.mark.parametrize("model", [
    Own((1, 4, 8), lambda x, p: x + p.mean(0)), Own((8, 8), lambda x, p: F.linear(x, p)),
    nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)),
], ids=["own", "outside", "mixing"])  # fmt: skip
def test_a_head_that_starts_at_zero_hides_nothing(model: nn.Module) -> None:
    model = _ready(model)
    if isinstance(model, nn.Sequential):
        model[1].forward = lambda x: torch.tanh(x + x.cumsum(0))  # scans see the ones before them
    for name, parameter in model.named_parameters():
        if parameter.shape[0] == 3:
            nn.init.zeros_(model.get_parameter(name))
    with pytest.raises(Unsupported):
        _difference(model)


def test_a_proof_holds_for_one_model_and_its_mode() -> None:
    class ByFlag(nn.Module):
        def __init__(self, mixes: bool) -> None:
            super().__init__()
            self.mixes, self.head = mixes, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            values = self.head(x.mean(1))
            return values + values.mean(0) if self.mixes or not self.training else values

    followed = _ready(ByFlag(mixes=False))
    assert _difference(followed) < 1e-12
    for mixing in (ByFlag(mixes=True), followed.eval()):
        with pytest.raises(Unsupported):
            _difference(mixing.double())


def test_gradients_that_are_rounding_alone_refuse_nothing() -> None:
    """A bias before a norm has none of its own, and a loss may be large."""
    body = nn.Sequential(nn.Conv1d(4, 8, 3), nn.InstanceNorm1d(8), nn.SiLU())
    model = Own((1, 4, 8), lambda x, p: x + p)
    model.head = nn.Sequential(nn.Unflatten(1, (4, 8)), body, nn.Flatten(), nn.Linear(48, 3))
    x, y, unit, n = _batch(torch.float32)

    def losses(outputs: Tensor, y: Tensor) -> Tensor:
        return 100 * class_losses(outputs, y)

    sums = [flat(clipped_sum(model.float(), losses, x, y, unit, n, 0.1, engine=engine).sum) for engine in ("fused", "vmap")]
    assert float((sums[0] - sums[1]).norm() / sums[1].norm()) < 1e-4


def test_proofs_leave_parameters_and_random_numbers_as_they_were() -> None:
    model = _ready(nn.Sequential(Own((1, 4, 8), lambda x, p: x + p), nn.Dropout(0.5)))
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    refused = _ready(Own((1,), lambda x, p: x * p[0]))
    refused_own = refused.own
    with pytest.raises(Unsupported):
        clipped_sum(refused, class_losses, *_batch(), 0.1, engine="fused")
    states = []
    for _ in range(2):  # with the proof, and without
        torch.manual_seed(3)
        clipped_sum(model, class_losses, *_batch(), 0.1, engine="fused")
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert refused.own is refused_own
    assert [name for name, _ in model.named_parameters()] == list(before)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_a_recording_that_cannot_start_leaves_the_model_as_it_was() -> None:
    class Odd(nn.GroupNorm):
        """Its parameters have no dimension, which nothing else allows."""

        def __init__(self) -> None:
            super().__init__(1, 4)
            self.weight = nn.Parameter(torch.ones(()))

    model = nn.Sequential(Own((1, 4, 8), lambda x, p: x + p), Odd())
    own = model[0].own
    with pytest.raises((Unsupported, RuntimeError)):
        clipped_sum(model.double(), class_losses, *_batch(), 0.1, engine="fused")
    assert model[0].own is own
    assert all("forward" not in vars(module) for module in model.modules())
