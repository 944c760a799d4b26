"""What a guarantee says about someone it was not made for: a patient with several records, or one in two hospitals.

A patient who owns up to K records, each drawn and clipped on its own, moves a step's sum by as many clip norms as
records were drawn: a mixture of Gaussians with Binomial(K, q) weights, which `pld.py` composes (Charles et al. 2024).
"""

from collections.abc import Sequence

from fedimaging.privacy.accounting import epsilon, epsilon_of_steps, patient_steps_of
from fedimaging.privacy.budget import Charge


def patient_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon for a whole patient, whatever the units. Error: PrivacyError where scans_per_patient is not known."""
    return epsilon_of_steps(patient_steps_of(charges), delta)


def group_epsilon(noise_multiplier: float, sample_rate: float, steps: int, scans_per_patient: int, delta: float) -> float:
    """Epsilon for a patient of at most `scans_per_patient` records under record-level sampling and clipping.

    At sigma 1, q 0.016, 3150 steps, delta 1e-5: 5.6 for one record, 31.6 for four, 84 for eight.
    """
    charge = Charge(noise_multiplier, sample_rate, steps, "record", scans_per_patient=scans_per_patient)
    return patient_epsilon([charge], delta)


def two_sites_epsilon(first: Sequence[Charge], second: Sequence[Charge], delta: float) -> float:
    """Epsilon for a patient whose data lies in both hospitals: their charges composed.

    For a patient in one hospital only it is the greater of the two. The project cannot see an overlap: report both.
    """
    return epsilon([*first, *second], delta)
