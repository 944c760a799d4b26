"""Canaries in a plain Gaussian mechanism of known mu: the bound stays below the truth, and half the noise above the claim."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedimaging.audits.canaries import Canaries, WithCanaries, audit_canaries, sgd_weights
from fedimaging.errors import PrivacyError
from fedimaging.privacy.gaussian import gaussian_epsilon
from fedimaging.privacy.noise import SimulatedNoise


def test_directions_are_unit_vectors_that_do_not_overlap() -> None:
    canaries = Canaries(7, 50, seed=3)
    gram = np.stack([canaries.project(canaries.total(np.arange(7) == k)) for k in range(7)])
    assert gram == pytest.approx(np.eye(7), abs=1e-6)


@pytest.mark.parametrize("count", [1, 51])
def test_more_canaries_than_numbers_or_too_few_are_refused(count: int) -> None:
    with pytest.raises(PrivacyError, match="at most the 50 numbers"):
        Canaries(count, 50, seed=0)


def scores(mu: float, seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    present = rng.random(count) < 0.5
    return mu * present + rng.standard_normal(count), present


@pytest.mark.parametrize("seed", range(10))
def test_bounds_stay_below_the_truth_and_half_the_noise_is_seen(seed: int) -> None:
    claim = 1.9
    found = audit_canaries(*scores(claim, seed), claim / 2, 1e-4, 0.99)
    assert 0 < found.mu_low < claim
    assert found.epsilon_low < gaussian_epsilon(claim, 1e-4)
    half = audit_canaries(*scores(2 * claim, seed), claim, 1e-4, 0.99)
    assert claim < half.mu_low < 2 * claim
    low, high = half.rate_limits()
    assert low > norm.cdf(claim - norm.ppf(1 - high))  # above what the claim allows at the same false positive rate


def test_perfect_guesses_give_all_that_so_many_canaries_can_prove() -> None:
    found = audit_canaries(*scores(50.0, 0), 25.0, 1e-5, 0.95)
    assert (found.found, found.false_alarms) == (found.present, 0)
    assert 3 < found.epsilon_low < 5  # that of 100 right guesses of 100


def test_coins_that_all_fell_alike_prove_nothing() -> None:
    with pytest.raises(PrivacyError, match="one side of the coin"):
        audit_canaries(np.zeros(5), np.ones(5, bool), 0.0, 1e-5, 0.95)


def sums(sample_rate: float) -> tuple[np.ndarray, Canaries, list[np.ndarray]]:
    """What 400 steps release along each canary, in clip norms of 0.5, with no noise and one real patient."""
    canaries, told = Canaries(4, 6, seed=0), []
    noise = WithCanaries(SimulatedNoise(1, "h", 1), canaries, 0.5, np.arange(6), lambda step, v: told.append(v))
    total = np.zeros(4)
    for step in range(400):
        noise.inclusion(step, 3, sample_rate)
        tensors = [torch.ones(2, 2), torch.ones(2)]
        noise.add_gaussian(tensors, 0.0, step)
        total += canaries.project(np.concatenate([t.flatten().numpy() for t in tensors]) - 1)
    return total / 0.5, canaries, told


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_canaries_that_are_in_enter_as_often_as_a_patient_and_the_others_never(rate: float) -> None:
    total, canaries, told = sums(rate)
    assert total[canaries.present] == pytest.approx(400 * rate, abs=1e-3 if rate == 1 else 35)
    assert total[~canaries.present] == pytest.approx(0, abs=1e-4)
    assert np.array_equal(told[0], np.ones(6))  # the real patients' sum, before anything is added


def test_the_noise_of_the_source_beneath_is_added_unchanged() -> None:
    bare, with_canaries = [torch.zeros(6)], [torch.zeros(6)]
    canaries = Canaries(2, 6, seed=5)
    SimulatedNoise(1, "h", 1).add_gaussian(bare, 2.0, 3)
    source: WithCanaries = WithCanaries(SimulatedNoise(1, "h", 1), canaries, 1.0, np.arange(6), lambda step, v: None)
    tensors: Sequence[torch.Tensor] = with_canaries
    source.add_gaussian(tensors, 2.0, 3)
    expected = bare[0].numpy() + canaries.total(canaries.present)
    assert with_canaries[0].numpy() == pytest.approx(expected, abs=1e-6)


def test_weights_of_sgd_steps_are_those_of_torch() -> None:
    w = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.5)
    for step in range(3):
        w.grad = torch.eye(3)[step]
        optimizer.step()
    assert sgd_weights(3, 0.5) == pytest.approx(-w.detach().numpy())
    assert sgd_weights(3, 0.0).tolist() == [1, 1, 1]
