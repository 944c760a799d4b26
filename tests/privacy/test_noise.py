from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from fedimaging.errors import PrivacyError
from fedimaging.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise

SOURCES: list[Callable[[], NoiseSource]] = [lambda: SimulatedNoise(7, "hospital_01", 3), SecureNoise]
both = pytest.mark.parametrize("source", SOURCES, ids=["simulated", "secure"])


def _drawn(noise: NoiseSource, size: int = 100_000, step: int = 0, std: float = 1.0) -> np.ndarray:
    tensor = torch.zeros(size, dtype=torch.float64)
    noise.add_gaussian([tensor], std, step)
    return tensor.numpy()


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@both
def test_8_noise_is_normal_and_its_numbers_do_not_know_each_other(source: Callable[[], NoiseSource]) -> None:
    first, second = torch.zeros(100, 1000), torch.zeros(100_000)
    source().add_gaussian([first, second], 2.0, 5)
    for tensor in (first, second):
        drawn = tensor.flatten().numpy() / 2.0
        assert abs(drawn.std() - 1) < 0.01
        assert abs(drawn.mean()) < 0.015
        assert abs(_correlation(drawn[1:], drawn[:-1])) < 0.02
        assert stats.kstest(drawn, "norm").pvalue > 1e-4
    assert abs(_correlation(first.flatten().numpy(), second.numpy())) < 0.02


@both
def test_tails_reach_as_far_as_a_normal_does(source: Callable[[], NoiseSource]) -> None:
    drawn = _drawn(source(), 1_000_000)
    assert 4.2 < np.abs(drawn).max() < 7.5
    assert abs((np.abs(drawn) > 3).mean() - 0.0027) < 0.0003


@pytest.mark.parametrize("other", [("hospital_02", 3, 0), ("hospital_01", 4, 0), ("hospital_01", 3, 1)])
def test_9_sites_rounds_and_steps_never_share_noise(other: tuple[str, int, int]) -> None:
    site, round_, step = other
    one = _drawn(SimulatedNoise(7, "hospital_01", 3), 200_000)
    two = _drawn(SimulatedNoise(7, site, round_), 200_000, step)
    assert abs(_correlation(one, two)) < 0.01


def test_9_the_hospital_noise_takes_no_seed_and_never_repeats() -> None:
    with pytest.raises(TypeError):
        SecureNoise(42)  # type: ignore[call-arg]
    noise = SecureNoise()
    assert abs(_correlation(_drawn(noise, step=0), _drawn(noise, step=0))) < 0.02
    assert (noise.inclusion(0, 1000, 0.5) != noise.inclusion(0, 1000, 0.5)).any()
    assert noise.generator(0, "scans").random() != noise.generator(0, "scans").random()


def test_simulated_noise_follows_from_its_key_alone() -> None:
    one, two = SimulatedNoise(1, "a", 2), SimulatedNoise(1, "a", 2)
    assert np.array_equal(_drawn(one), _drawn(two))
    assert np.array_equal(one.inclusion(3, 50, 0.4), two.inclusion(3, 50, 0.4))
    assert one.generator(0, "scans").random() != one.generator(0, "augment").random()


@pytest.mark.parametrize("size", [1, 7, 802, 40_000])
def test_a_step_has_its_noise_whatever_was_drawn_before(size: int) -> None:
    source = SimulatedNoise(1, "a", 2)
    expected = {step: _drawn(SimulatedNoise(1, "a", 2), size, step) for step in range(-1, 40)}
    assert len({tuple(numbers) for numbers in expected.values()}) == len(expected)
    for step in (0, 1, 2, 2, 19, 5, 4, -1, 0, *range(40), 31, 20):
        assert np.array_equal(_drawn(source, size, step), expected[step]), step
    for step in range(10):
        assert np.array_equal(_drawn(source, size, step), expected[step]), step
        _drawn(source, size + 2, step)


def test_simulated_noise_is_the_same_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    first = _drawn(SimulatedNoise(1, "a", 2), 600_000)
    try:
        torch.set_num_threads(1)
        assert np.array_equal(first, _drawn(SimulatedNoise(1, "a", 2), 600_000))
    finally:
        torch.set_num_threads(before)


def test_simulated_noise_has_not_moved() -> None:
    stored = [-0.15728395, 0.06951836, -0.94299811]
    assert np.allclose(_drawn(SimulatedNoise(0, "hospital_01", 1), 3), stored, atol=1e-7)


@both
def test_noise_is_added_in_place_whatever_the_layout(source: Callable[[], NoiseSource]) -> None:
    transposed = torch.zeros(30, 40).T
    scalar = torch.tensor(5.0)
    nothing = torch.zeros(0)
    source().add_gaussian([transposed, scalar, nothing], 1.0, 0)
    assert abs(float(transposed.std()) - 1) < 0.15
    assert float(scalar) != 5.0


@both
def test_no_std_leaves_the_numbers_alone(source: Callable[[], NoiseSource]) -> None:
    tensor = torch.arange(5.0)
    source().add_gaussian([tensor], 0.0, 0)
    assert torch.equal(tensor, torch.arange(5.0))


@both
@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_an_impossible_std_is_refused(source: Callable[[], NoiseSource], std: float) -> None:
    with pytest.raises(PrivacyError, match="std of the noise"):
        source().add_gaussian([torch.zeros(3)], std, 0)


@both
def test_inclusion_draws_at_the_rate(source: Callable[[], NoiseSource]) -> None:
    noise = source()
    assert abs(noise.inclusion(0, 100_000, 0.3).mean() - 0.3) < 0.01
    assert noise.inclusion(1, 100, 1.0).all()
    assert noise.inclusion(2, 0, 0.5).shape == (0,)


def test_reports_can_say_which_noise_was_used() -> None:
    assert (SimulatedNoise(0, "a", 1).name, SecureNoise().name) == ("simulated", "secure")


def test_tensors_that_share_a_memory_get_what_others_get() -> None:
    """Neighbours, a gap, a transposed tensor, and nothing."""
    memory = torch.zeros(40)
    views = [memory[:0], memory[:3], memory[3:7].view(2, 2), memory[8:9], memory[9:9], memory[9:21].view(4, 3).mT, memory[21:24]]
    apart = [torch.zeros(view.shape).copy_(view) for view in views]
    for tensors in (views, apart):
        SimulatedNoise(1, "a", 2).add_gaussian(tensors, 1.5, 3, over=2.0)
    assert all(torch.equal(view, alone) for view, alone in zip(views, apart, strict=True))
    assert memory[7] == 0
    assert not memory[24:].any()
    assert bool((memory[:7] != 0).all())
