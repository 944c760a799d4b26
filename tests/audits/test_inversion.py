"""One image out of one update: whole without noise, whatever the clip; nothing under the noise of a private step."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedimaging.audits.inversion import audit_inversion, invert_dense_layer, ssim
from fedimaging.data.spec import PhantomSpec
from fedimaging.data.synthetic import draw_scans, render
from fedimaging.errors import PrivacyError
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import SimulatedNoise
from tests.aggregation.secure_sum.rounds import Round

SIZE = 32
ALONE = DpPlan(
    unit="patient", n_units=1, sample_rate=1.0, noise_multiplier=0.0, clip_norm=1e9, delta=1e-5, steps_per_round=1, rounds=1,
    engine="loop",
)  # fmt: skip


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Pictures (32, 32) in [0, 1] of patients who never lived."""
    spec = PhantomSpec(patients=3, hospitals=1, scans_per_patient=(1, 1), seed=4)
    return [scan.image[0] / 255 for scan in itertools.islice(render(spec, draw_scans(spec), (SIZE, SIZE)), 3)]


def update(images: list[np.ndarray], plan: DpPlan, rate: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """What one private step of these patients changes in weight and bias of the first layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 64), nn.Tanh(), nn.Linear(64, 2))
    x = torch.tensor(np.stack(images), dtype=torch.float32)[:, None]
    y = torch.arange(len(images)) % 2

    def losses(outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, y, reduction="none")

    gradient = private_gradient(model, losses, x, y, torch.arange(len(x)), len(x), plan, SimulatedNoise(0, "h", 1), 0)
    return -rate * gradient[0].numpy(), -rate * gradient[1].numpy()


@pytest.mark.parametrize("clip", [1e9, 1.0, 1e-4])
def test_15_without_noise_the_image_comes_out_whole_whatever_the_clip(clip: float, images: list[np.ndarray]) -> None:
    found = audit_inversion(images[0], *update(images[:1], replace(ALONE, clip_norm=clip)))
    assert found.ssim == pytest.approx(1.0, abs=1e-3)
    assert found.psnr > 60
    np.testing.assert_allclose(found.image, images[0], atol=1e-3)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_15_under_the_noise_of_a_private_step_nothing_of_it_is_left(sigma: float, images: list[np.ndarray]) -> None:
    private = replace(ALONE, clip_norm=1.0, noise_multiplier=sigma)
    assert audit_inversion(images[0], *update(images[:1], private)).ssim < 0.1


def test_noise_far_too_small_for_a_guarantee_leaves_the_image_readable(images: list[np.ndarray]) -> None:
    quiet, little = (
        audit_inversion(images[0], *update(images[:1], replace(ALONE, clip_norm=1.0, noise_multiplier=sigma))).ssim
        for sigma in (0.001, 0.01)
    )
    assert quiet > 0.9 > little > 0.1


def test_15_a_masked_update_gives_nothing_away(images: list[np.ndarray]) -> None:
    weight, bias = update(images[:1], replace(ALONE, clip_norm=1.0))
    round = Round(4, size=weight.size + bias.size)
    round.vectors["h1"] = np.concatenate([weight.ravel(), bias])
    round.mask()
    sent = round.terms.fixed_point.decode(round.masked[0].vector)
    assert audit_inversion(images[0], sent[: weight.size].reshape(weight.shape), sent[weight.size :]).ssim < 0.1


def test_two_images_give_a_mean_of_them() -> None:
    one, other = np.array([1.0, 0.0, 0.5]), np.array([0.0, 1.0, 0.5])
    weight = np.outer([3.0, 0.0], one) + np.outer([0.0, 1.0], other)
    assert invert_dense_layer(weight, np.array([3.0, 1.0])) == pytest.approx(0.9 * one + 0.1 * other)


def test_the_fit_is_exact_arithmetic() -> None:
    image, moved = np.array([0.2, 0.7, 0.0]), np.array([3.0, 0.0, -1.0])
    assert invert_dense_layer(np.outer(moved, image), moved) == pytest.approx(image)


@pytest.mark.parametrize(("weight", "bias", "said"), [
    (np.ones((2, 3)), np.zeros(2), "norm of the bias"), (np.ones((2, 3)), np.array([np.nan, 1]), "norm of the bias"),
    (np.ones((2, 3)), np.ones(3), "shapes"), (np.ones(3), np.ones(3), "shapes"),
])  # fmt: skip
def test_what_cannot_be_inverted_is_told(weight: np.ndarray, bias: np.ndarray, said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        invert_dense_layer(weight, bias)


def test_ssim_of_equal_flat_and_noisy_images(images: list[np.ndarray]) -> None:
    assert ssim(images[0], images[0]) == pytest.approx(1.0)
    flat = ssim(np.full((20, 20), 0.8), np.full((20, 20), 0.4))
    assert flat == pytest.approx((2 * 0.8 * 0.4 + 1e-4) / (0.8**2 + 0.4**2 + 1e-4))
    noise = np.random.default_rng(0).random((SIZE, SIZE))
    assert abs(ssim(images[0], noise)) < 0.1
    assert ssim(images[0], 1 - images[0]) < 0.3
