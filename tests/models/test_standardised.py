"""Weight standardisation: exact small numbers, engines that agree with one-by-one autograd, and one that says it cannot."""

import pytest
import torch

from fedimaging.errors import PrivacyError, StudyError
from fedimaging.models.spec import ModelSpec
from fedimaging.models.standardised import standardised
from fedimaging.models.zoo import build_model
from fedimaging.privacy.clipping import clipped_sum


def _network(*, standardise: bool, dims: int = 2) -> torch.nn.Module:
    spec = ModelSpec(name="small_cnn", weight_standardisation=standardise, options={"width": 4})
    return build_model(spec, in_channels=1, out_channels=2, image_size=(16,) * dims, seed=3)


def _losses(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, target, reduction="none")


def test_mean_zero_and_norm_one() -> None:
    weight = torch.tensor([[[1.0, 3.0]], [[30.0, -10.0]]])
    expected = torch.tensor([[[-1.0, 1.0]], [[1.0, -1.0]]]) / 2**0.5
    assert torch.allclose(standardised(weight), expected, atol=1e-4)


def test_a_filter_of_equal_numbers_gives_zeros() -> None:
    assert torch.equal(standardised(torch.full((2, 1, 3, 3), 5.0)), torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize("dims", [2, 3])
def test_shift_and_scale_of_a_filter_change_nothing(dims: int) -> None:
    network, plain = _network(standardise=True, dims=dims), _network(standardise=False, dims=dims)
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for each in (network, plain):
        torch.nn.init.normal_(each.head.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
    x = torch.randn(2, 1, *(16,) * dims, generator=torch.Generator().manual_seed(0))
    before = network(x), plain(x)
    with torch.no_grad():
        for each in (network, plain):
            each.features[0].weight.mul_(100.0).add_(7.0)  # type: ignore[union-attr,index]
    assert torch.allclose(network(x), before[0], atol=1e-3)
    assert not torch.allclose(plain(x), before[1], atol=1e-2)


@pytest.mark.parametrize("engine", ["vmap", "opacus"])
def test_engines_agree_on_it(engine: str) -> None:
    model = _network(standardise=True)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y, units = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 2])
    sums = [clipped_sum(model, _losses, x, y, units, 3, 0.1, engine=name) for name in ("loop", engine)]
    for one, other in zip(sums[0].sum, sums[1].sum, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert sum(float(part.norm()) for part in sums[0].sum) > 0.05


def test_the_fused_engine_does_not_guess() -> None:
    x, y, units = torch.randn(2, 1, 16, 16), torch.tensor([0, 1]), torch.tensor([0, 1])
    with pytest.raises(PrivacyError, match="fused"):
        clipped_sum(_network(standardise=True), _losses, x, y, units, 2, 0.1, engine="fused")


def test_a_network_without_convolutions_is_refused() -> None:
    spec = ModelSpec(name="wavelet_net", weight_standardisation=True)
    with pytest.raises(StudyError, match="no convolution"):
        build_model(spec, in_channels=1, out_channels=2, image_size=(16, 16), seed=0)
