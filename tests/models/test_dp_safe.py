import pytest
import torch
from torch import Tensor, nn

from fedimaging.errors import PrivacyError, StudyError
from fedimaging.models import zoo
from fedimaging.models.dp_safe import (
    FixedNorm,
    cross_scan_influence,
    freeze_unused,
    make_dp_safe,
    require_independent_scans,
)
from fedimaging.models.layout import Layout
from fedimaging.models.spec import ModelSpec


def images(seed: int, count: int = 3) -> Tensor:
    return torch.randn((count, 2, 6, 6), generator=torch.Generator().manual_seed(seed))


def with_norm(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3), norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(128, 2))


def frozen_batch_norm() -> nn.Module:
    return nn.BatchNorm2d(8).requires_grad_(False)


BATCH_NORMS = {
    "affine": lambda: nn.BatchNorm2d(8),
    "not_affine": lambda: nn.BatchNorm2d(8, affine=False),
    "no_running_statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "frozen_weights": frozen_batch_norm,
    "synchronised": lambda: nn.SyncBatchNorm(8),
}


@pytest.mark.parametrize("kind", [k for k in BATCH_NORMS if k != "synchronised"])
def test_every_batch_norm_is_caught(kind: str) -> None:
    model = with_norm(BATCH_NORMS[kind]())
    assert cross_scan_influence(model, images(1), images(2)) > 0.01
    with pytest.raises(PrivacyError, match="remove what mixes the batch"):
        require_independent_scans(model, images(1), images(2))


@pytest.mark.parametrize("norm", ["group", "instance", "layer", "none"])
@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_every_batch_norm_is_replaced(kind: str, norm: str) -> None:
    model = make_dp_safe(with_norm(BATCH_NORMS[kind]()), norm=norm)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert not list(model.buffers())
    assert cross_scan_influence(model, images(1), images(2)) == 0
    require_independent_scans(model, images(1), images(2))


def test_a_batch_norm_as_the_whole_model_is_replaced() -> None:
    assert isinstance(make_dp_safe(nn.BatchNorm2d(8)), nn.GroupNorm)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (6, 1), (3, 1), (48, 12), (256, 32), (129, 3)])
def test_groups_keep_at_least_four_channels(channels: int, groups: int) -> None:
    layer = make_dp_safe(nn.BatchNorm2d(channels))
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


def test_weight_bias_and_their_freezing_are_copied() -> None:
    source = nn.BatchNorm2d(8)
    nn.init.normal_(source.weight)
    nn.init.normal_(source.bias)
    source.bias.requires_grad_(False)
    layer = make_dp_safe(nn.Sequential(source))[0]
    assert torch.equal(layer.weight, source.weight)
    assert torch.equal(layer.bias, source.bias)
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_norm_is_the_batch_norm_in_evaluation(affine: bool) -> None:
    source = nn.BatchNorm2d(2, affine=affine)
    source(3 * images(1) + 1)
    fixed = make_dp_safe(source, norm="frozen").train()
    assert isinstance(fixed, FixedNorm)
    assert fixed.weight.requires_grad is affine
    torch.testing.assert_close(fixed(images(2)), source.eval()(images(2)))
    assert cross_scan_influence(fixed, images(1), images(2)) == 0


def test_frozen_norm_needs_running_statistics() -> None:
    with pytest.raises(StudyError, match="keeps no running statistics"):
        make_dp_safe(nn.BatchNorm2d(8, track_running_stats=False), norm="frozen")


def test_an_unknown_norm_names_the_known() -> None:
    with pytest.raises(StudyError, match="did you mean 'group'"):
        make_dp_safe(nn.Linear(1, 1), norm="grup")


def test_instance_norm_forgets() -> None:
    layer = make_dp_safe(nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True, affine=True)))
    assert not list(layer.buffers())
    layer(images(1))
    expected = nn.InstanceNorm2d(2)(images(2))
    torch.testing.assert_close(layer.eval()(images(2)), expected)


def test_dropout_and_in_place_work_are_off() -> None:
    model = make_dp_safe(nn.Sequential(nn.Dropout(0.5), nn.ReLU(inplace=True), nn.MultiheadAttention(4, 2, dropout=0.1)))
    assert model[0].p == 0
    assert model[1].inplace is False
    assert model[2].dropout == 0


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_unused_parameters_are_frozen() -> None:
    model = Spare()
    assert freeze_unused(model, torch.ones(1, 3)) == ("unused.weight", "unused.bias")
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
    assert all(p.grad is None for p in model.parameters())
    assert make_dp_safe(Spare(), probe=torch.ones(1, 3)).unused.weight.requires_grad is False


class Mixer(nn.Module):
    """Subtracts the batch mean by hand, and hides it behind a last layer that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(36, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x - x.mean(0)).flatten(1))


def test_a_mixing_network_of_a_researcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixer(layout: Layout) -> nn.Module:
        return Mixer()

    monkeypatch.setitem(zoo.MODELS, "mixer", mixer)
    with pytest.raises(PrivacyError, match="Mixer"):
        zoo.build_model(ModelSpec(name="mixer"), in_channels=1, out_channels=2, image_size=(6, 6), seed=0)


def test_measuring_leaves_the_network_as_it_was() -> None:
    model = with_norm(nn.GroupNorm(2, 8))
    before = {k: (p, p.detach().clone()) for k, p in model.named_parameters()}
    require_independent_scans(model, images(1), images(2))
    assert all(before[k][0] is p and torch.equal(before[k][1], p) for k, p in model.named_parameters())


def test_a_layer_in_two_places_is_refused() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(StudyError, match="registers one layer as '0' and as '1'"):
        make_dp_safe(nn.Sequential(layer, layer))
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert make_dp_safe(tied) is tied


@pytest.mark.parametrize("answer", ["tuple", "shape"])
def test_a_network_must_give_one_plain_tensor(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return (x, x) if answer == "tuple" else x.mean()

    def odd(layout: Layout) -> nn.Module:
        return Odd()

    monkeypatch.setitem(zoo.MODELS, "odd", odd)
    with pytest.raises(StudyError, match="it must give"):
        zoo.build_model(ModelSpec(name="odd"), in_channels=1, out_channels=2, image_size=(6, 6), seed=0)
