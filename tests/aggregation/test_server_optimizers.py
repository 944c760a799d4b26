import numpy as np
import pytest

from fedimaging.aggregation.server_optimizers import SERVER_OPTIMIZERS, ServerOptimizerSpec, first_moments, server_step

WEIGHTS = np.array([1.0, -2.0], np.float32)
UPDATE = np.array([0.5, 0.25])


def _steps(algorithm: str, count: int, **keys: float) -> np.ndarray:
    spec = ServerOptimizerSpec(algorithm=algorithm, **keys)
    weights, moments = WEIGHTS, first_moments(spec, 2)
    for _ in range(count):
        weights, moments = server_step(weights, UPDATE, moments, spec)
    return weights


def test_fedavg_adds_the_mean_update() -> None:
    np.testing.assert_array_equal(_steps("fedavg", 1), [1.5, -1.75])
    np.testing.assert_array_equal(_steps("fedavg", 1, server_learning_rate=2.0), [2.0, -1.5])


def test_fedavgm_gathers_momentum() -> None:
    np.testing.assert_allclose(_steps("fedavgm", 2, server_momentum=0.5), WEIGHTS + UPDATE + 1.5 * UPDATE)


def test_fedadam_first_step_by_hand() -> None:
    first = 0.1 * UPDATE
    second = 0.99 * 1e-6 + 0.01 * UPDATE**2
    expected = WEIGHTS + 0.1 * first / (np.sqrt(second) + 1e-3)
    np.testing.assert_allclose(_steps("fedadam", 1, server_learning_rate=0.1), expected, rtol=1e-6)


def test_fedyogi_second_moment_moves_by_at_most_the_square() -> None:
    first = 0.1 * UPDATE
    second = 1e-6 + 0.01 * UPDATE**2
    expected = WEIGHTS + 0.1 * first / (np.sqrt(second) + 1e-3)
    np.testing.assert_allclose(_steps("fedyogi", 1, server_learning_rate=0.1), expected, rtol=1e-6)


@pytest.mark.parametrize("algorithm", sorted(SERVER_OPTIMIZERS))
def test_every_optimizer_keeps_float32_and_changes_nothing_it_was_given(algorithm: str) -> None:
    spec = ServerOptimizerSpec(algorithm=algorithm)
    moments = first_moments(spec, 2)
    before = {name: value.copy() for name, value in moments.items()}
    weights, _ = server_step(WEIGHTS, UPDATE, moments, spec)
    assert weights.dtype == np.float32
    for name, value in before.items():
        np.testing.assert_array_equal(moments[name], value)


@pytest.mark.parametrize("algorithm", sorted(SERVER_OPTIMIZERS))
def test_a_large_network_steps_as_its_parts_do(algorithm: str) -> None:
    spec, size = ServerOptimizerSpec(algorithm=algorithm), 2**16 + 3  # one block, and a little of the next
    draw = np.random.default_rng(0)
    weights, update = draw.normal(size=size).astype(np.float32), draw.normal(size=size)
    moments = first_moments(spec, size)
    whole, after = server_step(weights, update, moments, spec)
    for part in (slice(0, 1000), slice(1000, size)):
        stepped, kept = server_step(weights[part], update[part], {name: m[part] for name, m in moments.items()}, spec)
        np.testing.assert_array_equal(whole[part], stepped)
        assert kept.keys() == after.keys()
        for name in kept:
            np.testing.assert_array_equal(after[name][part], kept[name])
