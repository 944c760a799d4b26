"""The canary audit on the real step, and on four mutants of it, each of which it must catch."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedimaging.audits.white_box import Mechanism, WhiteBoxAudit, audit_mechanism
from fedimaging.errors import PrivacyError
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise

PARAMETERS, UNITS = 6, 5
PLAN = DpPlan(
    unit="patient",
    n_units=UNITS,
    sample_rate=1.0,
    noise_multiplier=1.0,
    clip_norm=0.5,
    delta=1e-5,
    steps_per_round=1,
    rounds=1,
    engine="loop",
)
DIRECTION = np.eye(PARAMETERS)[0]


def product(outputs: Tensor, y: Tensor) -> Tensor:
    """A loss whose gradient is x * y: the canary's gradient is what its input says."""
    return outputs[:, 0] * y


def real_step(plan: DpPlan = PLAN, noise_of: Callable[[bool, int], NoiseSource] | None = None) -> Mechanism:
    """`private_gradient` of a linear model; the canary is a unit with a gradient of 50 clip norms along DIRECTION."""
    model = nn.Linear(PARAMETERS, 1, bias=False)
    others = torch.linspace(-1, 1, (UNITS - 1) * PARAMETERS).reshape(UNITS - 1, PARAMETERS)
    canary = torch.zeros(1, PARAMETERS)
    canary[0, 0] = 50 * PLAN.clip_norm
    noise_of = noise_of or (lambda present, trial: SimulatedNoise(7, f"world {present}", trial))

    def release(present: bool, trial: int) -> np.ndarray:
        x = torch.cat([others, canary]) if present else others
        n = len(x)
        noise = noise_of(present, trial)
        gradient = private_gradient(model, product, x, torch.ones(n), torch.arange(n), n, plan, noise, step=0)
        return gradient[0].flatten().numpy()

    return release


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Thousands of tiny steps: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def audited(mechanism: Mechanism, direction: np.ndarray = DIRECTION, trials: int = 1000) -> WhiteBoxAudit:
    return audit_mechanism(mechanism, direction, noise_multiplier=1.0, trials=trials)


def test_the_real_step_is_as_private_as_it_says() -> None:
    result = audited(real_step())
    assert result.mu_hat == pytest.approx(1.0, abs=0.08)
    assert 3.0 <= result.epsilon_low <= result.claimed_epsilon == pytest.approx(4.3772, abs=1e-4)
    assert result.verdict == "consistent"


def test_secure_noise_is_as_private_as_it_says() -> None:
    result = audited(real_step(noise_of=lambda present, trial: SecureNoise()), trials=400)
    assert result.mu_hat == pytest.approx(1.0, abs=0.3)  # not seeded: four standard errors
    assert result.verdict == "consistent"


def test_halved_noise_is_caught() -> None:
    result = audited(real_step(dataclasses.replace(PLAN, noise_multiplier=0.5)))
    assert result.verdict == "violation"
    assert 7.0 < result.epsilon_low < 9.9973  # that of half the noise; a 95 % bound of 1000 trials lies about one under it


def test_a_removed_clip_is_caught() -> None:
    # Without the clip noise is still N(0, (1 * 0.5)^2): a clip norm that binds nobody, and the noise of the right one.
    result = audited(real_step(dataclasses.replace(PLAN, clip_norm=1e6, noise_multiplier=0.5 / 1e6)), trials=300)
    assert result.verdict == "violation"
    assert result.mu_low > 4  # no error in either world: all that 300 trials can prove


def test_a_repeated_seed_is_caught() -> None:
    result = audited(real_step(noise_of=lambda present, trial: SimulatedNoise(42, "same", 0)), trials=300)
    assert result.verdict == "violation"
    assert result.mu_low > 4


def joint_step(norm: nn.Module) -> Mechanism:
    """Clip and noise done right, on a network that sees all units in one pass; the canary is a very bright image."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Tanh(), nn.Linear(8, 1))
    weights = list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    others = torch.randn(UNITS * 4, 4, generator=generator)
    canary = torch.full((1, 4), 100.0)

    def clipped_total(present: bool) -> np.ndarray:
        x = torch.cat([others, canary]) if present else others
        total = torch.zeros(sum(weight.numel() for weight in weights))
        for loss in model(x)[:, 0]:
            unit = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, retain_graph=True)])
            total += unit / unit.norm().clamp(min=1.0)
        return total.numpy()

    noiseless = {present: clipped_total(present) for present in (False, True)}
    drawn = np.random.default_rng(2)
    return lambda present, trial: noiseless[present] + drawn.standard_normal(len(noiseless[present])) * (trial >= 0)


@pytest.mark.parametrize(
    ("norm", "verdict"),
    [
        (nn.BatchNorm1d(8), "violation"),
        (nn.BatchNorm1d(8, affine=False), "violation"),
        (nn.GroupNorm(2, 8), "consistent"),
    ],
    ids=["batch", "batch without weights", "group"],
)
def test_a_layer_that_mixes_patients_is_caught(norm: nn.Module, verdict: str) -> None:
    mechanism = joint_step(norm)
    direction = mechanism(True, -1) - mechanism(False, -1)  # trial -1 has no noise
    assert audited(mechanism, direction).verdict == verdict


def test_a_canary_that_cannot_be_seen_proves_nothing() -> None:
    drawn = np.random.default_rng(0)
    blind = audit_mechanism(lambda present, trial: drawn.standard_normal(3), np.ones(3), 1.0, trials=50)
    assert blind.verdict == "inconclusive"
    assert blind.epsilon_low == 0.0


@pytest.mark.parametrize(("direction", "sigma", "said"), [(np.zeros(3), 1.0, "changes nothing"), (np.ones(3), 0.0, "to claim")])
def test_an_audit_of_nothing_is_refused(direction: np.ndarray, sigma: float, said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        audit_mechanism(lambda present, trial: direction, direction, sigma)
