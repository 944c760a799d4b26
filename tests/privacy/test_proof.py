"""What engine `fused` proves before it follows a model: each case gave a wrong sum, or was refused, before it was."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass

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


class Body(nn.Module):
    """Between two linear layers stands `use`."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.use, self.head = nn.Linear(8, 8), use, nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(torch.tanh(self.first(x))).flatten(1))


class SortedByLength(Body):
    """As networks for sequences do; real scans end in padding, random ones do not."""

    def forward(self, x: Tensor) -> Tensor:
        order = torch.argsort((x != 0).any(1).sum(1), descending=True, stable=True)
        return self.head(torch.tanh(self.first(x[order]))[torch.argsort(order)].flatten(1))


class WithoutPadding(Body):
    """Only the columns that are not padding meet the layer, all scans' in a row."""

    def forward(self, x: Tensor) -> Tensor:
        columns = F.pad(x, (0, 0, 0, 4)).mT
        filled = (columns != 0).any(2)
        found = x.new_zeros(*columns.shape[:2], 8)
        found[filled] = torch.tanh(self.first(columns[filled]))
        return self.head(found.mean(1).repeat(1, 4))


class Masked(nn.Conv1d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight.tril(), bias)


def _hooked() -> nn.Module:
    model = Body(nn.Identity())
    model.first.weight.register_hook(lambda g: 2 * g)
    return model


@pytest.mark.parametrize("model", [
    SortedByLength(nn.Identity()), WithoutPadding(nn.Identity()), Body(lambda z: z + z.roll(2, 0)),
    Body(lambda z: z - z.detach().mean(0)), nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Flatten(), nn.Linear(32, 3)),
    nn.Sequential(nn.Conv1d(4, 4, 1).requires_grad_(False), nn.BatchNorm1d(4, affine=False), nn.Flatten(), nn.Linear(32, 3)),
    nn.Sequential(Masked(4, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)), _hooked(),
], ids=["sorted", "packed", "rolled", "detached", "batch norm", "frozen", "own convolution", "hook on a parameter"])
def test_what_mixes_scans_or_computes_otherwise_is_refused(model: nn.Module) -> None:
    with pytest.raises(Unsupported):
        _difference(model.double())


@pytest.mark.parametrize("engine", ["fused", "opacus"])
def test_a_loss_that_looks_at_other_targets_is_refused(engine: str) -> None:
    def losses(outputs: Tensor, y: Tensor) -> Tensor:
        return class_losses(outputs, y) * torch.bincount(y, minlength=3)[y]

    with pytest.raises(Unsupported, match="mixes"):
        clipped_sum(_ready(Body(nn.Identity())), losses, *_batch(), 0.1, engine=engine)


def test_complex_layers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8, dtype=torch.complex128), nn.Flatten())

    def losses(outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.abs().mean(1)

    x, *rest = _batch()
    with pytest.raises(Unsupported):
        clipped_sum(model, losses, torch.complex(x, x.flip(-1)), *rest, 0.1, engine="fused")


def test_a_layer_that_was_exchanged_is_looked_at_again() -> None:
    class Mixing(nn.Tanh):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + x.mean(0))

    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).double()
    assert _difference(model) < 1e-12
    model[1] = Mixing()
    with pytest.raises(Unsupported):
        _difference(model)


def test_what_a_model_remembers_is_not_of_the_proofs_numbers() -> None:
    class Remembering(Body):
        scale: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.scale is None:
                self.scale = self.frozen.exp().detach()
            return super().forward(x * self.scale)

    model = Remembering(nn.Identity())
    model.frozen = nn.Parameter(torch.zeros(8), requires_grad=False)
    assert _difference(model.double()) < 1e-12
    assert torch.equal(model.scale, torch.ones(8, dtype=torch.float64))


def test_a_model_whose_loss_belongs_to_it_is_not_kept() -> None:
    class Judging(Body):
        def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
            return class_losses(outputs, y)

    model = Judging(nn.Identity()).double()
    clipped_sum(model, model.losses, *_batch(), 0.1, engine="fused")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_loss_that_cannot_be_told_from_others_is_refused() -> None:
    @dataclass  # with an __eq__ of its own, and so no hash
    class Loss:
        scale: float = 1.0

        def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
            return self.scale * class_losses(outputs, y)

    with pytest.raises(Unsupported, match="told from others"):
        clipped_sum(_ready(Body(nn.Identity())), Loss(), *_batch(), 0.1, engine="fused")


@pytest.mark.parametrize("engine", ["vmap", "fused"])
def test_scans_of_whole_numbers_have_their_weight(engine: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Embedding(5, 4), nn.Flatten(), nn.Linear(128, 3)).double()
    x = torch.randint(0, 5, (6, 4, 8))
    sums = [flat(clipped_sum(model, class_losses, x, *_batch()[1:], 0.1, engine=name).sum) for name in (engine, "loop")]
    assert float((sums[0] - sums[1]).norm() / sums[1].norm()) < 1e-12
