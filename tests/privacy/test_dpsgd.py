import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from fedimaging.errors import PrivacyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.dpsgd import DpPlan, PrivacySpec, plan_for, private_gradient
from fedimaging.privacy.group import patient_epsilon
from fedimaging.privacy.noise import SecureNoise, SimulatedNoise
from tests.privacy.privacy_networks import flat

PLAN = DpPlan(
    unit="patient", n_units=200, sample_rate=0.1, noise_multiplier=1.5, clip_norm=1.0, delta=1e-5,
    steps_per_round=10, rounds=5, engine="loop",
)  # fmt: skip


def _linear_losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Gradient of the scan's loss: y times the scan itself, in the first row of the weight."""
    return outputs[:, 0] * y


def _step(x: Tensor, plan: DpPlan, step: int = 0, model: nn.Module | None = None) -> Tensor:
    model = model or nn.Linear(4, 1, bias=False)
    units = torch.arange(len(x))
    noise = SimulatedNoise(0, "hospital_01", 1)
    return flat(private_gradient(model, _linear_losses, x, torch.ones(len(x)), units, len(x), plan, noise, step))


def test_a_step_is_the_clipped_sum_over_the_expected_batch() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.3, 0.0, 0.0]])
    found = _step(x, replace(PLAN, noise_multiplier=0.0))
    assert found.tolist() == pytest.approx([0.6 / 20, (0.8 + 0.3) / 20, 0, 0])


def test_without_noise_and_clip_it_is_plain_sgd() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = _step(x, replace(PLAN, noise_multiplier=0.0, clip_norm=1e9))
    assert torch.allclose(found, x.double().mean(0), atol=1e-6)


def test_8_noise_moments_over_400_draws() -> None:
    model = nn.Sequential(nn.Linear(4, 150, bias=False), nn.Linear(150, 1, bias=False))
    drawn = torch.stack([_step(torch.zeros(0, 4), PLAN, step, model) for step in range(400)]).numpy()
    assert abs(drawn.std() - 0.0750) < 0.00075
    assert np.abs(drawn.std(0) - 0.0750).mean() < 0.003
    assert abs(drawn.mean()) < 0.0004
    flat_draws = drawn.ravel()
    assert abs(np.corrcoef(flat_draws[1:], flat_draws[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:, :150].ravel(), drawn[:, 600:].ravel())[0, 1]) < 0.02
    assert stats.kstest(flat_draws / 0.075, "norm").pvalue > 0.01


def test_10_an_empty_draw_is_noised_and_charged_like_any_other() -> None:
    plan = replace(PLAN, n_units=40, sample_rate=1 / 40, steps_per_round=40)
    noise = SimulatedNoise(0, "pilot", 1)
    drawn = [noise.inclusion(step, 40, plan.sample_rate).sum() for step in range(40)]
    assert 0 in drawn
    steps = [_step(torch.zeros(int(n), 4), plan, step) for step, n in enumerate(drawn)]
    assert all(float(step.abs().min()) > 0 for step in steps)
    charge = plan.charge()
    assert (charge.steps, charge.noise_multiplier, charge.sample_rate, charge.unit) == (40, 1.5, 1 / 40, "patient")


def test_11_the_denominator_does_not_know_how_many_were_drawn() -> None:
    quiet = replace(PLAN, noise_multiplier=0.0)
    one = torch.zeros(50, 4)
    one[0, 0] = 0.5
    assert _step(one[:20], quiet).tolist() == pytest.approx([0.025, 0, 0, 0])
    assert torch.equal(_step(one[:20], quiet), _step(one, quiet))


def test_11_2000_patients_at_a_batch_of_32_divide_by_32() -> None:
    plan = plan_for(PrivacySpec(noise_multiplier=1.0), 2000, 32, 63, 50)
    assert (plan.denominator, plan.sample_rate) == (32.0, 0.016)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e30])
def test_13_what_leaves_is_finite_whatever_the_scans_are(value: float) -> None:
    quiet = replace(PLAN, noise_multiplier=0.0)
    found = _step(torch.full((3, 4), value), quiet)
    assert torch.isfinite(found).all()
    assert float(found.norm()) <= 3 / 20 * (1 + 1e-5)


def test_the_hospital_noise_works_the_same_way() -> None:
    model = nn.Linear(1000, 1, bias=False)
    empty = (torch.zeros(0, 1000), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found = private_gradient(model, _linear_losses, *empty, 0, PLAN, SecureNoise(), 0)
    assert abs(float(flat(found).std()) - 0.075) < 0.01


def test_steps_repeat_bit_for_bit_in_a_simulation() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_step(x, PLAN, 3), _step(x, PLAN, 3))
    assert not torch.equal(_step(x, PLAN, 3), _step(x, PLAN, 4))


def test_a_target_is_met_by_all_rounds_together() -> None:
    plan = plan_for(PrivacySpec(target_epsilon=3.0), 400, 32, 10, 5)
    spent = epsilon([plan.charge(50)], plan.delta)
    assert 2.9 < spent <= 3.0
    assert plan.charge() == replace(plan.charge(50), steps=10)


@pytest.mark.parametrize(("n", "delta"), [(400, 1e-5), (1_000_000, 1_000_000**-1.1)])
def test_delta_lies_below_one_over_the_number_of_units(n: int, delta: float) -> None:
    plan = plan_for(PrivacySpec(noise_multiplier=1.0), n, 32, 10, 5)
    assert plan.delta == pytest.approx(delta)
    assert plan.delta < 1 / n
    with pytest.raises(PrivacyError, match=r"privacy\.delta"):
        plan_for(PrivacySpec(noise_multiplier=1.0, delta=1 / n), n, 32, 10, 5)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [((0, 1, 1, 1), "n_units"), ((10, 1, 0, 1), "steps_per_round"), ((10, 1, 1, 0), "rounds"),
     ((10, 11, 1, 1), "expected_batch"), ((10, 0, 1, 1), "expected_batch")],
)  # fmt: skip
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int, int], name: str) -> None:
    with pytest.raises(PrivacyError, match=name):
        plan_for(PrivacySpec(noise_multiplier=1.0), *sizes)


@pytest.mark.parametrize(
    ("keys", "rule"),
    [({}, "exactly one"), ({"target_epsilon": 3.0, "noise_multiplier": 1.0}, "exactly one"),
     ({"noise_multiplier": 1.0, "sampling": "shuffle"}, "spend far more"), ({"noise_multiplier": 0.0}, "greater than 0"),
     ({"noise_multiplier": math.inf}, "finite"), ({"noise_multiplier": 1.0, "engine": "ghost"}, "'loop'"),
     ({"noise_multiplier": 1.0, "clip": 1.0}, "Extra inputs")],
)  # fmt: skip
def test_a_spec_that_promises_nothing_sound_is_refused(keys: dict[str, object], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        PrivacySpec(**keys)  # type: ignore[arg-type]


def test_records_carry_how_many_a_patient_has_into_every_charge() -> None:
    records = plan_for(PrivacySpec(unit="record", noise_multiplier=1.0), 2000, 32, 63, 50, scans_per_patient=4)
    assert records.charge(3150) == Charge(1.0, 0.016, 3150, "record", scans_per_patient=4)
    assert patient_epsilon([records.charge(3150)], 1e-5) == pytest.approx(31.56, rel=0.005)
    assert plan_for(PrivacySpec(noise_multiplier=1.0), 2000, 32, 63, 50).charge().scans_per_patient is None


@pytest.mark.parametrize(
    ("unit", "scans", "rule"), [("record", 0, "at least 1"), ("patient", 4, "no meaning for unit 'patient'")]
)
def test_a_number_of_scans_that_means_nothing_is_refused(unit: Literal["record", "patient"], scans: int, rule: str) -> None:
    with pytest.raises(PrivacyError, match=rule):
        plan_for(PrivacySpec(unit=unit, noise_multiplier=1.0), 2000, 32, 63, 50, scans_per_patient=scans)


def test_a_share_of_the_noise_is_that_much_of_it_and_costs_the_same() -> None:
    x = torch.zeros(3, 4)
    whole, half = _step(x, PLAN), _step(x, replace(PLAN, noise_share=0.5))
    torch.testing.assert_close(half, whole / 2)
    assert replace(PLAN, noise_share=0.5).charge() == PLAN.charge()
