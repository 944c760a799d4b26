"""Which patients train and which test."""

import hashlib

import numpy as np

from fedimaging.data.spec import SplitSpec


def split_by_patient(patient_ids: np.ndarray, spec: SplitSpec) -> np.ndarray:
    """train, validation or test for every scan, (N,) str, from sha256 of the seed and the patient id alone.

    All scans of a patient are in one part, which stays the same when other patients come or go, on every machine.
    """
    patients, which = np.unique(patient_ids, return_inverse=True)
    digests = (hashlib.sha256(f"{spec.seed}:{patient}".encode()).digest() for patient in patients)
    place = np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])
    held = spec.test + spec.validation
    part = np.where(place < spec.test, "test", np.where(place < held, "validation", "train"))
    return part[which]
