import math

import numpy as np
import pytest

from fedimaging.errors import PrivacyError
from fedimaging.privacy.accounting import (
    bound_for,
    calibrate,
    delta_for,
    epsilon,
    epsilon_by,
    epsilon_prv,
    epsilon_rdp,
)
from fedimaging.privacy.budget import Budget, Charge


def hospital(sigma: float = 1.0, steps: int = 3150, unit: str = "patient") -> Charge:
    return Charge(sigma, 0.016, steps, unit)


def test_one_release_is_the_gaussian_and_fifty_compose() -> None:
    assert epsilon([Charge(1.0, 1.0, 1, "patient")], 1e-5) == pytest.approx(4.3772, abs=1e-4)
    assert epsilon([Charge(10.0, 1.0, 50, "patient")], 1e-5) == pytest.approx(2.9432, abs=1e-4)


def test_rounds_add_up_as_one_run_and_order_does_not_matter() -> None:
    rounds = [hospital(steps=63)] * 50
    assert epsilon(rounds, 1e-5) == epsilon([hospital()], 1e-5) == pytest.approx(5.5779, abs=1e-4)
    both = [hospital(1.2, 1575), hospital(0.9, 1575)]
    assert epsilon(both, 1e-5) == epsilon(both[::-1], 1e-5)


def test_a_reset_accountant_would_have_said_one_round() -> None:
    assert epsilon([hospital(steps=63)], 1e-5) == pytest.approx(0.992, abs=1e-3)
    assert epsilon([hospital(steps=3150 + 630)], 1e-5) == pytest.approx(6.171, abs=1e-3)


def test_nothing_spent_and_nothing_protected() -> None:
    assert epsilon([], 1e-5) == epsilon_rdp([], 1e-5) == epsilon_prv([], 1e-5) == delta_for([], 1.0) == 0.0
    assert epsilon([hospital(steps=0)], 1e-5) == 0.0
    bare = [hospital(), Charge(0.0, 0.016, 1, "patient")]
    assert math.isinf(epsilon(bare, 1e-5))
    assert math.isinf(epsilon_rdp(bare, 1e-5))
    assert delta_for(bare, 3.0) == 1.0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 100, 5000])
def test_rdp_lies_above_pld(sigma: float, steps: int) -> None:
    charges = [hospital(sigma, steps)]
    assert epsilon(charges, 1e-5) <= epsilon_rdp(charges, 1e-5)


def test_delta_for_is_the_inverse_of_epsilon() -> None:
    charges = [hospital()]
    assert delta_for(charges, epsilon(charges, 1e-5)) == pytest.approx(1e-5, rel=1e-3)
    assert delta_for(charges, 0.0) == pytest.approx(0.5, abs=0.2)
    with pytest.raises(PrivacyError, match="epsilon=-1"):
        delta_for(charges, -1)


@pytest.mark.parametrize("delta", [0.0, 1e-12, 1.0, math.nan])
def test_a_delta_beyond_the_arithmetic_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta="):
        epsilon([hospital()], delta)


@pytest.mark.parametrize(
    ("target", "delta", "sample_rate", "steps"),
    [(8, 1e-5, 0.016, 3150), (1, 1e-5, 0.1, 500), (0.05, 1e-6, 0.01, 200), (60, 1e-5, 0.08, 650), (3, 1e-6, 0.001, 1)],
)
def test_calibrated_noise_ends_under_its_target_and_close(target: float, delta: float, sample_rate: float, steps: int) -> None:
    from dp_accounting.pld import privacy_loss_distribution

    sigma = calibrate(target, delta, sample_rate, steps)
    reached = epsilon([Charge(sigma, sample_rate, steps, "patient")], delta)
    assert target * (1 - 1e-3) <= reached <= target
    theirs = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=sample_rate, value_discretization_interval=1e-4
    )
    assert target * (1 - 1.1e-3) <= theirs.self_compose(steps).get_epsilon_for_delta(delta) <= target


@pytest.mark.parametrize(("target", "delta"), [(0.003, 1e-9), (1e-9, 1e-3)])
def test_calibration_ends_also_near_the_step_of_the_grid(target: float, delta: float) -> None:
    assert epsilon([Charge(calibrate(target, delta, 1.0, 1), 1.0, 1, "patient")], delta) <= target


def test_calibration_is_kept() -> None:
    calibrate(8, 1e-5, 0.016, 3150)
    before = calibrate.cache_info().hits
    calibrate(8, 1e-5, 0.016, 3150)
    assert calibrate.cache_info().hits == before + 1


@pytest.mark.parametrize(
    "arguments", [(0, 1e-5, 0.1, 10), (2000, 1e-5, 0.1, 10), (1, 1e-5, 0.1, 0), (1, 1e-5, 2.0, 10), (1, 0, 0.1, 10)]
)
def test_a_target_that_nothing_reaches_is_refused(arguments: tuple) -> None:
    with pytest.raises(PrivacyError):
        calibrate(*arguments)


def test_the_bound_for_a_budget_decides_as_epsilon_does() -> None:
    exact = epsilon([hospital()], 1e-5)
    generous, exact_fit, short = (bound_for(Budget(exact * k, 1e-5)) for k in (1.5, 1 + 1e-9, 0.999))
    assert exact <= generous([hospital()], 1e-5) <= exact * 1.001
    assert exact_fit([hospital()], 1e-5) == exact
    assert short([hospital()], 1e-5) == exact


def test_units_are_mixed_only_where_scans_per_patient_are_known() -> None:
    patient, record = hospital(), hospital(steps=630, unit="record")
    with pytest.raises(PrivacyError, match="scans per patient"):
        epsilon([patient, record], 1e-5)
    bounded = Charge(1.0, 0.016, 630, "record", scans_per_patient=4)
    mixed = epsilon([patient, bounded], 1e-5)
    assert mixed > epsilon([patient, hospital(steps=630)], 1e-5) + 1
    assert mixed <= epsilon_rdp([patient, bounded], 1e-5)
    with pytest.raises(PrivacyError, match="use 'pld'"):
        epsilon_prv([patient, bounded], 1e-5)


def test_records_alone_are_accounted_as_records() -> None:
    bounded = Charge(1.0, 0.016, 3150, "record", scans_per_patient=4)
    assert epsilon([bounded], 1e-5) == epsilon([hospital()], 1e-5)


def test_accountants_by_name() -> None:
    assert epsilon_by("pld", [hospital()], 1e-5) == epsilon([hospital()], 1e-5)
    with pytest.raises(PrivacyError, match="known: pld, prv, rdp"):
        epsilon_by("pdl", [hospital()], 1e-5)


def test_epsilon_falls_with_noise_and_grows_with_steps_and_rate() -> None:
    def at(sigma: float, rate: float, steps: int) -> float:
        return epsilon([Charge(sigma, rate, steps, "patient")], 1e-5)

    assert np.all(np.diff([at(sigma, 0.02, 200) for sigma in (0.5, 1, 2, 4)]) < 0)
    assert np.all(np.diff([at(1.0, rate, 200) for rate in (0.01, 0.1, 0.5, 1.0)]) > 0)
    assert np.all(np.diff([at(1.0, 0.02, steps) for steps in (1, 10, 100, 1000)]) > 0)


def test_a_huge_epsilon_is_given_on_a_coarser_grid_or_as_infinity() -> None:
    assert 300 < epsilon([Charge(0.5, 0.5, 300, "patient")], 1e-5) < 1000
    assert math.isinf(epsilon([Charge(0.01, 1.0, 1000, "patient")], 1e-5))
    assert math.isinf(epsilon([Charge(0.5, 1.0, 10**7, "patient")], 1e-5))
