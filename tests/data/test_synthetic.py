"""Phantoms follow from their spec alone, and hospitals, lesions and the harder subgroup are what it says."""

import hashlib

import numpy as np
import pytest

from fedimaging.data.spec import PhantomSpec
from fedimaging.data.synthetic import People, Phantom, draw_scans, render, scanners

SMALL = PhantomSpec(patients=24, hospitals=3, seed=1)


def drawn(spec: PhantomSpec, size: tuple[int, ...]) -> tuple[People, list[Phantom]]:
    people = draw_scans(spec)
    return people, list(render(spec, people, size))


def digest(scans: list[Phantom]) -> str:
    return hashlib.sha256(b"".join(scan.image.tobytes() + scan.mask.tobytes() for scan in scans)).hexdigest()


@pytest.mark.parametrize("size", [(24, 24), (20, 24, 22)])
def test_the_same_spec_gives_the_same_scans(size: tuple[int, ...]) -> None:
    spec = SMALL.model_copy(update={"dims": len(size)})
    people, scans = drawn(spec, size)
    assert scans[0].image.shape == (1, *size)
    assert scans[0].image.dtype == np.uint8
    assert scans[0].spacing_mm == tuple(384 / n for n in size)
    assert digest(scans) == digest(drawn(spec, size)[1])
    assert digest(scans) != digest(drawn(spec.model_copy(update={"seed": 2}), size)[1])
    lesion = np.array([scan.mask.any() for scan in scans])
    np.testing.assert_array_equal(lesion, people.labels["lesion"] == 1)


def test_a_scan_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digest(drawn(SMALL, (24, 24))[1])
    monkeypatch.setattr("fedimaging.data.synthetic._BLOCK_VALUES", 1000)
    assert digest(drawn(SMALL, (24, 24))[1]) == whole


def test_patients_scans_and_columns() -> None:
    people = draw_scans(PhantomSpec(patients=300, hospitals=5))
    ids, first, counts = np.unique(people.patient_ids, return_index=True, return_counts=True)
    assert len(ids) == 300
    assert set(counts) == {1, 2, 3, 4}
    for values in (*people.columns.values(), *people.labels.values()):
        assert (values == values[first][np.searchsorted(ids, people.patient_ids)]).all()
    assert np.unique(people.columns["site"]).tolist() == [f"hospital_{i:02d}" for i in range(1, 6)]
    assert set(people.columns["sex"]) == {"F", "M"}
    kinds = people.labels
    np.testing.assert_array_equal(kinds["lesion"], kinds["nodule"] + kinds["opacity"])
    np.testing.assert_array_equal(kinds["kind"], kinds["nodule"] + 2 * kinds["opacity"])


def test_hospitals_differ_in_size_prevalence_and_lesions() -> None:
    people = draw_scans(PhantomSpec(patients=6000, hospitals=3, scans_per_patient=(1, 1), prevalence=(0.2, 0.6)))
    sizes = np.bincount(people.hospital)
    assert sizes[0] > 2 * sizes[2]
    prevalence = [people.labels["lesion"][people.hospital == i].mean() for i in range(3)]
    np.testing.assert_allclose(prevalence, [0.2, 0.4, 0.6], atol=0.04)
    radius = [people.bodies.radius[people.hospital == i].mean() for i in range(3)]
    assert radius[0] < radius[1] < radius[2]


def test_women_over_70_have_fainter_lesions() -> None:
    people = draw_scans(PhantomSpec(patients=2000, scans_per_patient=(1, 1), hard_contrast=0.5))
    hard = (people.columns["sex"] == "F") & (people.columns["age"].astype(int) > 70)
    assert 0.05 < hard.mean() < 0.25
    ratio = people.bodies.contrast[hard].mean() / people.bodies.contrast[~hard].mean()
    assert abs(ratio - 0.5) < 0.03


def test_lesions_are_brighter_than_what_they_cover() -> None:
    people, scans = drawn(PhantomSpec(patients=60, hospitals=2, prevalence=(0.9, 0.9), seed=3), (48, 48))
    ill = [scan for scan in scans if scan.mask.sum() > 20]
    ring = [np.roll(scan.mask, 24, axis=1) for scan in ill]  # about the same place in the other lung
    brighter = [
        scan.image[0][scan.mask > 0].mean() > scan.image[0][other > 0].mean()
        for scan, other in zip(ill, ring, strict=True)
    ]
    assert np.mean(brighter) > 0.9
    assert people.labels["lesion"].mean() > 0.7


def test_scanners_are_alike_without_difference() -> None:
    assert len(set(scanners(PhantomSpec(scanner_difference=0.0)))) == 1
    assert len(set(scanners(PhantomSpec()))) == 6


def test_every_hospital_has_patients_however_few() -> None:
    people = draw_scans(PhantomSpec(patients=7, hospitals=7))
    assert len(set(people.columns["site"])) == 7
