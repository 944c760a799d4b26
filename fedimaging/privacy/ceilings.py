"""What a guarantee means for an attacker, and for the signal: figures to print before anybody trains."""

import math
from collections.abc import Sequence

import numpy as np

from fedimaging.errors import PrivacyError, bad_value
from fedimaging.privacy.accounting import Steps, deltas_of_steps, steps_of
from fedimaging.privacy.budget import Charge

_EPSILONS = np.concatenate([[0.0], np.geomspace(1e-3, 100.0, 2000)])


def tpr_ceiling(charges: Sequence[Charge], fpr: float) -> float:
    """The greatest true positive rate that any membership attack can have at this false positive rate.

    For the unit of the charges: a patient, or a record. Error: PrivacyError for a rate outside (0, 1].
    """
    return tpr_ceiling_of_steps(steps_of(charges), fpr)


def tpr_ceiling_of_steps(steps: Steps, fpr: float) -> float:
    """The same of what `steps_of` gave, or, for a patient of several records, `patient_steps_of`.

    The least of exp(e) fpr + delta(e) over all e, with delta(e) from the PLD of all charges; the same number bounds the
    success of a reconstruction whose prior success is `fpr`. Any e gives a bound, so the grid of e only costs sharpness.
    Error: PrivacyError for a rate outside (0, 1].
    """
    if not 0 < fpr <= 1:
        raise PrivacyError(bad_value("fpr", fpr, "must be above 0 and at most 1"))
    bounds = np.exp(_EPSILONS) * fpr + deltas_of_steps(steps, _EPSILONS)
    return float(min(1.0, bounds.min()))


def noise_to_signal(noise_multiplier: float, expected_batch: float, parameters: int) -> float:
    """Norm of the noise in one averaged gradient over the greatest norm that the averaged gradient can have.

    Both scale with the clip norm, which drops out: sigma * sqrt(parameters) / expected_batch. `expected_batch` is sample
    rate times units; `parameters` counts trainable numbers. Far above 1 is usual; training averages it over its steps.
    """
    if not expected_batch > 0:
        raise PrivacyError(bad_value("expected_batch", expected_batch, "must be above 0"))
    return noise_multiplier * math.sqrt(parameters) / expected_batch
