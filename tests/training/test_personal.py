"""A hospital's own model: its steps, and how far it may go from the shared one."""

import numpy as np

from fedimaging.training.local import train_locally
from fedimaging.training.personal import personal_steps
from fedimaging.training.spec import PersonalSpec
from tests.training.test_local import _bench, _records

PLAIN = PersonalSpec(kind="fine_tune", steps=2, learning_rate=0.1)


def test_without_a_pull_the_steps_are_those_of_plain_training() -> None:
    bench, records = _bench(privacy=None), _records((16, 16))
    own = personal_steps(bench, bench.initial, bench.initial + 9, records, PLAIN, key="k")
    np.testing.assert_array_equal(own, train_locally(bench, bench.initial, records, None, None, key="k", round=1).end)


def test_an_endless_pull_gives_the_shared_model_and_a_small_one_lies_between() -> None:
    bench, records = _bench(privacy=None), _records((16, 16))
    shared, start = bench.initial + np.float32(0.5), bench.initial

    def distance(mu: float) -> float:
        spec = PersonalSpec(kind="ditto", steps=5, learning_rate=0.1, mu=mu)
        return float(np.abs(personal_steps(bench, start, shared, records, spec, key="k") - shared).max())

    assert distance(1e12) < 1e-6
    assert distance(1e12) < distance(10.0) < distance(0.1)


def test_one_step_is_the_gradient_step_and_then_the_exact_proximal_one() -> None:
    bench, records = _bench(privacy=None), _records((16, 16))
    shared = bench.initial + np.float32(1.0)
    free = personal_steps(bench, bench.initial, shared, records, PersonalSpec(
        kind="fine_tune", steps=1, learning_rate=0.1), key="k")
    pulled = personal_steps(bench, bench.initial, shared, records, PersonalSpec(
        kind="ditto", steps=1, learning_rate=0.1, mu=10.0), key="k")
    np.testing.assert_allclose(pulled, (free + 1.0 * shared) / 2.0, atol=1e-6)  # rate times mu is 1
