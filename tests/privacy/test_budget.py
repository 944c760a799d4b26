import math

import pytest

from fedimaging.errors import PrivacyError
from fedimaging.privacy.budget import Budget, Charge


def test_a_charge_is_frozen_and_comparable() -> None:
    charge = Charge(1.0, 0.016, 63, "patient")
    assert charge == Charge(1.0, 0.016, 63, "patient", sampling="poisson", scans_per_patient=None)
    with pytest.raises(AttributeError):
        charge.steps = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ((-1.0, 0.1, 1, "patient"), "noise_multiplier=-1.0 must be a number of at least 0"),
        ((math.nan, 0.1, 1, "patient"), "noise_multiplier=nan"),
        ((True, 0.1, 1, "patient"), "noise_multiplier=True"),
        ((1.0, 0.0, 1, "patient"), "sample_rate=0.0 must be above 0"),
        ((1.0, 1.5, 1, "patient"), "sample_rate=1.5 .* at most 1"),
        ((1.0, 0.1, -1, "patient"), "steps=-1 must be a whole number"),
        ((1.0, 0.1, 2.0, "patient"), "steps=2.0 must be a whole number"),
        ((1.0, 0.1, 1, "patients"), "did you mean 'patient'"),
        ((1.0, 0.1, 1, "patient", "shuffle"), "sampling='shuffle' cannot be charged as Poisson"),
        ((1.0, 0.1, 1, "record", "poisson", 0), "scans_per_patient=0 must be a whole number of at least 1"),
    ],
)
def test_a_charge_that_cannot_be_accounted_for_is_refused(fields: tuple, said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        Charge(*fields)


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (8, 0), (8, 1), (8, 2), ("8", 0.1)])
def test_a_budget_that_means_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(PrivacyError, match="budget"):
        Budget(epsilon, delta)


def test_no_limit_is_a_budget() -> None:
    assert math.isinf(Budget(math.inf, 1e-5).epsilon)


@pytest.mark.parametrize("days", [0, -1, 1.5, True, 366_001])
def test_a_window_that_is_no_number_of_days_is_refused(days: int) -> None:
    with pytest.raises(PrivacyError, match=r"budget\.days="):
        Budget(8.0, 1e-5, days)
