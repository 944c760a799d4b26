"""What only a CUDA device can show: graphs of a pass, and noise made there. Skipped elsewhere, as in CI."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import build_model
from fedimaging.privacy.clipping import choose_engine, clipped_sum, replay
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import SecureNoise, SimulatedNoise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
UNITS = 11


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def _losses(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


def _smooth(model: nn.Module) -> nn.Module:
    """Without kinks, at which rounding makes gradients jump in any engine."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.PReLU):
                setattr(parent, name, nn.GELU())
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    return model


def _setting(name: str, scans: int = 1) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    model = _smooth(build_model(ModelSpec(name=name), in_channels=1, out_channels=2, image_size=(32, 32), seed=0)).cuda()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(UNITS * scans, 1, 32, 32, generator=generator).cuda()
    y = torch.randint(0, 2, (UNITS * scans,), generator=generator).cuda()
    return model, x, y, torch.arange(UNITS, device="cuda").repeat_interleave(scans)


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    return float(torch.stack([(p - q).double().norm() for p, q in zip(a, b, strict=True)]).norm())


@pytest.mark.parametrize("scans", [1, 2])
@pytest.mark.parametrize(("name", "engine"), [
    ("small_cnn", "fused"), ("densenet", "fused"), ("resnet18", "fused"), ("efficientnet_b0", "fused"), ("small_cnn", "vmap"),
    ("vit", "vmap"),
])
def test_a_replayed_pass_equals_one_by_one_gradients(name: str, engine: str, scans: int) -> None:
    model, x, y, unit = _setting(name, scans)
    for units in (UNITS, UNITS, UNITS, UNITS - 1, 4, UNITS):  # ordinary, captured, replayed, filled up, another size
        rows = units * scans
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        x = x + 0.1
        given = (model, _losses, x[:rows], y[:rows], unit[:rows], units, 0.5)
        expected, found = clipped_sum(*given, engine="loop"), clipped_sum(*given, engine=engine)
        assert _distance(found.sum, expected.sum) < 2e-5 * 0.5 * units
        assert torch.allclose(found.norms, expected.norms, rtol=1e-4)
    graphs = list(replay._shelves[model].graphs.values())
    assert graphs
    assert None not in graphs


def test_large_volumes_are_differentiated_one_by_one() -> None:
    model = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.GELU(), nn.Conv3d(6, 4, 3, stride=2), nn.GELU(),
                          nn.ConvTranspose3d(4, 2, 2, stride=2), nn.Flatten(2)).cuda()
    x = torch.randn(3, 1, 64, 64, 64, device="cuda")
    y = torch.zeros(3, dtype=torch.int64, device="cuda")

    def losses(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs.mean(2), y, reduction="none")

    given = (model, losses, x, y, torch.arange(3), 3, 0.01)
    expected, found = clipped_sum(*given, engine="loop"), clipped_sum(*given, engine="fused")
    assert _distance(found.sum, expected.sum) < 1e-4 * 0.01


def test_a_replayed_sum_moves_by_at_most_the_clip_norm() -> None:
    model, x, y, unit = _setting("small_cnn")
    x[3] *= 1e4
    sums = {}
    for rows in (UNITS, UNITS - 1, UNITS, UNITS - 1, UNITS, UNITS - 1):
        keep = torch.arange(UNITS, device="cuda") != (UNITS if rows == UNITS else 3)
        sums[rows] = clipped_sum(model, _losses, x[keep], y[keep], unit[:rows], rows, 0.7, engine="fused").sum
    assert _distance(sums[UNITS], sums[UNITS - 1]) <= 0.7 * (1 + 1e-5)


def test_a_gradient_that_is_not_finite_is_left_out_of_a_replayed_sum_too() -> None:
    model, x, y, unit = _setting("small_cnn")
    for _ in range(3):
        clipped_sum(model, _losses, x, y, unit, UNITS, 1.0, engine="fused")
    bad = x.clone()
    bad[2] = torch.nan
    found = clipped_sum(model, _losses, bad, y, unit, UNITS, 1.0, engine="fused")
    expected = clipped_sum(model, _losses, bad, y, unit, UNITS, 1.0, engine="loop")
    assert _distance(found.sum, expected.sum) < 1e-4
    assert not torch.isfinite(found.norms[2])


def test_auto_takes_the_graph_where_it_is_fastest() -> None:
    model, x, y, unit = _setting("densenet")
    choice = choose_engine(model, _losses, x, y, unit, UNITS, 1.0)
    assert choice.name == "fused"
    assert "fused" in choice.seconds


def test_noise_made_on_the_device_is_normal_and_that_of_the_cpu() -> None:
    there, here = torch.zeros(300_001, device="cuda"), torch.zeros(300_001)
    for tensor in (there, here):
        SimulatedNoise(5, "a", 1).add_gaussian([tensor], 2.0, 3)
    assert float((there.cpu() - here).abs().max()) < 1e-5
    secure = torch.zeros(300_001, device="cuda")
    SecureNoise().add_gaussian([secure], 2.0, 3)
    for tensor in (there, secure):
        assert stats.kstest(tensor.cpu().numpy() / 2, "norm").pvalue > 1e-4


def test_a_private_step_on_the_device_is_the_sum_and_its_noise() -> None:
    model, x, y, unit = _setting("small_cnn")
    plan = DpPlan("patient", 10 * UNITS, 0.1, 0.0, 1.0, 1e-5, 1, 1, engine="fused")
    found = private_gradient(model, _losses, x, y, unit, UNITS, plan, SimulatedNoise(0, "a", 1), 0)
    expected = clipped_sum(model, _losses, x, y, unit, UNITS, 1.0).sum
    assert _distance(found, [part / plan.denominator for part in expected]) < 1e-5
