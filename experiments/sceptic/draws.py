"""Tests 8, 9, 10 and 12: noise, sampling, and the audit that sees both from outside."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from gradients import step_of
from rows import Row, below, near, within
from scipy import stats
from torch import Tensor, nn

from fedimaging.audits.white_box import Mechanism, WhiteBoxAudit, audit_mechanism
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise

PLAN = DpPlan("patient", 200, 0.1, 1.5, 1.0, 1e-5, 10, 5, engine="loop")


def noise_moments() -> list[Row]:
    """Test 8: 400 empty private steps of two layers, 150 numbers each and more."""
    model = nn.Sequential(nn.Linear(4, 150, bias=False), nn.Linear(150, 1, bias=False))
    drawn = torch.stack([step_of(torch.zeros(0, 4), PLAN, step, model) for step in range(400)]).numpy()
    numbers = drawn.ravel()[:100_000] / 0.075
    secure = torch.zeros(100_000, dtype=torch.float64)
    SecureNoise().add_gaussian([secure], 1.0, 0)
    return [
        near("sd of a coordinate (σ = 1.5, C = 1, B = 20)", float(drawn.std()), 0.075, 0.00075, 5),
        near("mean, in sd", float(numbers.mean()), 0.0, 0.015, 4),
        below("correlation of neighbours", abs(_correlation(numbers[1:], numbers[:-1])), 0.02),
        below("correlation across layers", abs(_correlation(drawn[:, :150].ravel(), drawn[:, 600:].ravel())), 0.02),
        Row("Kolmogorov–Smirnov p", "> 0.01", f"{_normal(numbers):.3f}", _normal(numbers) > 0.01),
        Row("the same of a hospital's secure noise (drawn anew each time)", "> 1e-6", f"{_normal(secure.numpy()):.3f}",
            _normal(secure.numpy()) > 1e-6),
    ]  # fmt: skip


def no_seed_reuse() -> list[Row]:
    """Test 9."""
    base = _noise(SimulatedNoise(7, "hospital_01", 3))
    rows = [
        below(f"correlation with {what}", abs(_correlation(base, _noise(SimulatedNoise(7, site, round)))), 0.01)
        for what, site, round in (("another hospital", "hospital_02", 3), ("another round", "hospital_01", 4))
    ]
    return [*rows, refused_seed()]


def refused_seed() -> Row:
    """A hospital's noise takes no seed."""
    try:
        SecureNoise(42)  # type: ignore[call-arg]
    except TypeError:
        return Row("a seed for a hospital's noise", "refused", "refused (TypeError)", True)
    return Row("a seed for a hospital's noise", "refused", "accepted", False)


def poisson_sampler() -> list[Row]:
    """Test 10."""
    noise = SimulatedNoise(0, "hospital_01", 1)
    drawn = np.stack([noise.inclusion(step, 2000, 0.016) for step in range(10_000)])
    sizes, rates = drawn.sum(1), drawn.mean(0)
    pairs = float((drawn[:, :-1] & drawn[:, 1:]).mean()) / 0.016**2
    pilot = SimulatedNoise(0, "pilot", 1)
    empty = [not pilot.inclusion(step, 40, 1 / 40).any() for step in range(10_000)]
    plan = replace(PLAN, n_units=40, sample_rate=1 / 40, steps_per_round=40)
    quiet = [step_of(torch.zeros(0, 4), plan, step) for step in range(40)]
    return [
        below("farthest inclusion rate from 0.016", float(np.abs(rates - 0.016).max()), 0.0063),
        near("mean batch", float(sizes.mean()), 32.0, 0.3, 2), near("its sd", float(sizes.std()), 5.61, 0.2, 2),
        near("pairs drawn together, over independent ones", pairs, 1.0, 0.05),
        near("empty draws of a pilot hospital of 40", float(np.mean(empty)), 0.363, 0.02),
        Row("empty steps that are noised", "40 of 40", f"{sum(bool((step != 0).all()) for step in quiet)} of 40",
            all(bool((step != 0).all()) for step in quiet)),
        Row("steps that a round of them is charged", "40", str(plan.charge().steps), plan.charge().steps == 40),
    ]  # fmt: skip


def canary_audit() -> list[Row]:
    """Test 12: the real step at σ = 1, and four mutants of it."""
    correct = _audited(_mechanism())
    halved = _audited(_mechanism(noise_multiplier=0.5))
    unclipped = _audited(_mechanism(clip_norm=1e6, noise_multiplier=0.5 / 1e6))
    repeated = _audited(_mechanism(noise_of=lambda present, trial: SimulatedNoise(42, "same", 0)))
    mixing = audit_mechanism(*_mixing_mechanism(), noise_multiplier=1.0)
    mutants = {"noise halved": halved, "clip removed": unclipped, "seed repeated": repeated, "BatchNorm inside": mixing}
    return [
        near("μ̂ of the real step", correct.mu_hat, 1.0, 0.08),
        within("lower bound of its ε", correct.epsilon_low, 3.0, 4.377),
        Row("verdict", "consistent", correct.verdict, correct.verdict == "consistent"),
        within("noise halved: lower bound of ε (about 8; true ε 9.997)", halved.epsilon_low, 7.0, 9.9973),
        *(Row(f"{what}: verdict", "violation", found.verdict, found.verdict == "violation") for what, found in mutants.items()),
    ]


def _audited(mechanism: Mechanism) -> WhiteBoxAudit:
    return audit_mechanism(mechanism, np.eye(6)[0], noise_multiplier=1.0)


def _mechanism(
    *, clip_norm: float = 0.5, noise_multiplier: float = 1.0, noise_of: Callable[[bool, int], NoiseSource] | None = None
) -> Mechanism:
    """`private_gradient` of a linear model, all five patients drawn; the canary's gradient is 25 long."""
    plan = DpPlan("patient", 5, 1.0, noise_multiplier, clip_norm, 1e-5, 1, 1, engine="loop")
    model, others = nn.Linear(6, 1, bias=False), torch.linspace(-1, 1, 24).reshape(4, 6)
    canary = torch.zeros(1, 6)
    canary[0, 0] = 25.0
    noise_of = noise_of or (lambda present, trial: SimulatedNoise(7, f"world {present}", trial))

    def release(present: bool, trial: int) -> np.ndarray:
        x = torch.cat([others, canary]) if present else others
        units, noise = torch.arange(len(x)), noise_of(present, trial)
        gradient = private_gradient(model, _product, x, torch.ones(len(x)), units, len(x), plan, noise, step=0)
        return gradient[0].flatten().numpy()

    return release


def _product(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs[:, 0] * y


def _mixing_mechanism() -> tuple[Mechanism, np.ndarray]:
    """Clip and noise done right, on a network whose BatchNorm sees all patients at once; and where the canary shows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    weights = list(model.parameters())
    others, canary = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.full((1, 4), 100.0)
    worlds = {}
    for present in (False, True):
        clipped = torch.zeros(sum(weight.numel() for weight in weights))
        for loss in model(torch.cat([others, canary]) if present else others)[:, 0]:
            unit = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, retain_graph=True)])
            clipped += unit / unit.norm().clamp(min=1.0)
        worlds[present] = clipped.numpy()
    drawn = np.random.default_rng(2)
    return lambda present, trial: worlds[present] + drawn.standard_normal(len(worlds[present])), worlds[True] - worlds[False]


def _noise(source: NoiseSource) -> np.ndarray:
    tensor = torch.zeros(200_000, dtype=torch.float64)
    source.add_gaussian([tensor], 1.0, 0)
    return tensor.numpy()


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def _normal(numbers: np.ndarray) -> float:
    return float(stats.kstest(numbers, "norm").pvalue)
