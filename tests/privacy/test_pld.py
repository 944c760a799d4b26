import math

import numpy as np
import pytest

from fedimaging.privacy.gaussian import gaussian_delta
from fedimaging.privacy.pld import Step, compose, step_losses


@pytest.mark.parametrize("sigma", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("rate", [1e-4, 0.1, 0.95])
@pytest.mark.parametrize("times", [1, 50])
def test_as_dp_accounting_says(sigma: float, rate: float, times: int) -> None:
    from dp_accounting.pld import privacy_loss_distribution

    theirs = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=rate, value_discretization_interval=5e-3
    ).self_compose(times)
    removal, addition = compose({Step(sigma, rate, 1): times}, 5e-3)
    for delta in (1e-3, 1e-5, 1e-8):
        ours = max(removal.epsilon(delta), addition.epsilon(delta))
        expected = theirs.get_epsilon_for_delta(delta)
        assert expected - 1e-6 * max(1.0, expected) <= ours <= expected + 1e-4 * max(1.0, expected)


def test_rare_great_losses_keep_the_window_small() -> None:
    removal, addition = compose({Step(1.0, 1e-4, 1): 100_000}, 1e-4)
    assert len(removal.probs) < 50_000
    assert max(removal.epsilon(1e-8), addition.epsilon(1e-8)) == pytest.approx(0.20938, rel=1e-3)  # dp_accounting's


def test_group_of_records_as_dp_accounting_says() -> None:
    from dp_accounting.pld import privacy_loss_distribution

    theirs = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        2.0, [0, 1, 2, 3], [0.9**3, 3 * 0.1 * 0.81, 3 * 0.01 * 0.9, 0.001], value_discretization_interval=5e-3
    ).self_compose(50)
    removal, addition = compose({Step(2.0, 0.1, 3): 50}, 5e-3)
    ours = max(removal.epsilon(1e-5), addition.epsilon(1e-5))
    assert ours == pytest.approx(theirs.get_epsilon_for_delta(1e-5), rel=1e-6)


def test_different_steps_compose_in_one_go() -> None:
    from dp_accounting.pld import privacy_loss_distribution

    one, two = (
        privacy_loss_distribution.from_gaussian_mechanism(s, sampling_prob=q, value_discretization_interval=1e-3)
        for s, q in ((1.0, 0.02), (3.0, 1.0))
    )
    expected = one.self_compose(100).compose(two.self_compose(4)).get_epsilon_for_delta(1e-6)
    removal, addition = compose({Step(1.0, 0.02, 1): 100, Step(3.0, 1.0, 1): 4}, 1e-3)
    assert max(removal.epsilon(1e-6), addition.epsilon(1e-6)) == pytest.approx(expected, rel=1e-6)


def test_without_sampling_it_is_the_gaussian_from_above() -> None:
    removal, addition = compose({Step(2.0, 1.0, 1): 9}, 1e-3)
    at = np.array([0.0, 0.5, 2.0, 5.0, 12.0])
    exact = np.array([gaussian_delta(1.5, float(epsilon)) for epsilon in at])
    for side in (removal, addition):
        assert np.all(side.delta(at) >= exact)
        assert np.allclose(side.delta(at), exact, rtol=1e-3, atol=1e-11)


def test_mass_is_whole_and_a_finer_grid_gives_no_more() -> None:
    step = Step(0.8, 0.05, 1)
    for side in step_losses(step, 1e-3):
        assert side.probs.min() >= 0
        assert side.probs.sum() + side.infinity == pytest.approx(1.0, abs=1e-12)
    coarse, fine = (max(side.epsilon(1e-5) for side in compose({step: 500}, grid)) for grid in (1e-2, 1e-3))
    assert fine <= coarse <= fine * 1.02


def test_no_epsilon_for_a_delta_under_the_mass_at_infinity() -> None:
    removal, _ = compose({Step(1.0, 0.1, 1): 10}, 1e-2)
    assert math.isinf(removal.epsilon(removal.infinity / 2))
    assert removal.epsilon(0.999) == 0.0
