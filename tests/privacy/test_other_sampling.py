import pytest

from fedimaging.errors import PrivacyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.other_sampling import shuffled_epsilon, truncated_poisson_epsilon


def test_shuffled_batches_are_ten_times_poisson_and_cannot_be_charged() -> None:
    assert shuffled_epsilon(1.0, 50, 1e-5) == pytest.approx(54.38, abs=0.01)
    with pytest.raises(PrivacyError, match="sampling='shuffle'"):
        Charge(1.0, 0.016, 3150, "patient", sampling="shuffle")
    with pytest.raises(PrivacyError, match="noise_multiplier=0"):
        shuffled_epsilon(0, 50, 1e-5)


def test_a_cap_that_bites_costs() -> None:
    poisson = epsilon([Charge(1.0, 0.1, 20, "patient")], 1e-5)
    loose, tight = (truncated_poisson_epsilon(1.0, 0.1, 20, units=100, most=most, delta=1e-5) for most in (60, 12))
    assert loose == pytest.approx(poisson, rel=1e-3)
    assert tight > poisson * 1.05
