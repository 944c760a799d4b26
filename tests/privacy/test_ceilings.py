import pytest
from scipy.special import ndtr, ndtri

from fedimaging.errors import PrivacyError
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.ceilings import noise_to_signal, tpr_ceiling


def test_no_attack_beats_chance_where_nothing_was_spent() -> None:
    assert tpr_ceiling([], 0.01) == pytest.approx(0.01)


def test_one_release_has_the_gaussian_trade_off() -> None:
    exact = ndtr(ndtri(0.01) + 1.0)  # mu = 1
    assert exact <= tpr_ceiling([Charge(1.0, 1.0, 1, "patient")], 0.01) <= exact * 1.01


def test_a_rate_is_asked_for() -> None:
    with pytest.raises(PrivacyError, match="fpr=0"):
        tpr_ceiling([], 0)


def test_noise_to_signal() -> None:
    assert noise_to_signal(1.5, expected_batch=30.0, parameters=10_000) == pytest.approx(5.0)
    with pytest.raises(PrivacyError, match="expected_batch=0"):
        noise_to_signal(1.5, 0, 10)
