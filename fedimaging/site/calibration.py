"""What leaves of a calibration on a hospital's validation patients: sums on a public grid of temperatures, never a score.

`none`: nothing. `noised`: with Gaussian noise, charged to the hospital's ledger before the first validation patient is read.
`exact`: as they are.
"""

import numpy as np

from fedimaging.privacy.released_metrics import PatientTotals
from fedimaging.privacy.tempering import tempering_totals
from fedimaging.results import Arrays
from fedimaging.training.evaluate import Evaluated
from fedimaging.training.tasks import Task


def calibration_totals(found: Evaluated, task: Task) -> PatientTotals:
    """The sums of validation patients. A hospital without any gives zeros of the same shape."""
    labels = np.zeros((0, task.out_channels) if task.multilabel else 0, np.int64)
    scores = np.zeros((0, task.out_channels))
    patient = found.arrays.get("patient", np.zeros(0, np.int64))
    return tempering_totals(found.arrays.get("scores", scores), found.arrays.get("labels", labels), patient, task.kind)


def exact(totals: PatientTotals) -> Arrays:
    """The sums as they are, float32; no guarantee of privacy. Their noise is 0."""
    arrays = {name: array.astype(np.float32) for name, array in totals.arrays.items()}
    return arrays | {"noise_std": np.array(0.0, np.float32)}
