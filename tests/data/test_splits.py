"""Patients keep their part whoever else there is."""

import numpy as np

from fedimaging.data.spec import SplitSpec
from fedimaging.data.splits import split_by_patient


def test_all_scans_of_a_patient_are_in_one_part() -> None:
    ids = np.repeat([f"p{i}" for i in range(50)], 3)
    part = split_by_patient(ids, SplitSpec(test=0.3, validation=0.2))
    assert all(len(set(part[ids == patient])) == 1 for patient in set(ids))
    assert set(part) == {"train", "validation", "test"}


def test_a_patients_part_does_not_depend_on_the_others() -> None:
    ids = np.array([f"p{i}" for i in range(200)])
    spec = SplitSpec(test=0.2, seed=3)
    np.testing.assert_array_equal(split_by_patient(ids, spec)[50:100], split_by_patient(ids[50:100], spec))


def test_fractions_hold_and_the_seed_matters() -> None:
    ids = np.array([f"p{i}" for i in range(20000)])
    part = split_by_patient(ids, SplitSpec(test=0.2, validation=0.1))
    assert abs((part == "test").mean() - 0.2) < 0.01
    assert abs((part == "validation").mean() - 0.1) < 0.01
    assert (part != split_by_patient(ids, SplitSpec(test=0.2, validation=0.1, seed=1))).mean() > 0.2


def test_the_hash_is_the_same_on_every_machine_and_in_every_version() -> None:
    ids = np.array(["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"])
    assert split_by_patient(ids, SplitSpec(test=0.4)).tolist() == [
        "train",
        "train",
        "test",
        "train",
        "test",
        "train",
        "train",
        "test",
    ]
