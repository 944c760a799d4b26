"""Hospitals: whole patients, the asked sizes and mixes, and nobody left without training patients."""

from collections.abc import Sequence

import numpy as np
import pytest

from fedimaging.data.dataset import Dataset
from fedimaging.data.partition import assign, one_class_sites
from fedimaging.data.spec import HospitalsSpec
from fedimaging.errors import DataError, StudyError

from .making import dataset


def pool(patients: int = 1000, scans: int = 2, positive: float = 0.3) -> Dataset:
    ids = [f"p{i:04d}" for i in range(patients) for _ in range(scans)]
    rng = np.random.default_rng(0)
    part = rng.choice(["train", "train", "train", "test"], patients).repeat(scans)
    labels = (rng.random(patients) < positive).astype(np.int64).repeat(scans)
    return dataset(ids, split=part, labels=labels)


def shares(sites: np.ndarray) -> np.ndarray:
    return np.unique(sites, return_counts=True)[1] / len(sites)


@pytest.mark.parametrize("by", ["iid", "label_skew", "quantity_skew"])
def test_patients_stay_whole_and_the_answer_stays_the_same(by: str) -> None:
    data = pool()
    spec = HospitalsSpec(by=by, count=4, alpha=2.0)  # type: ignore[arg-type]
    sites = assign(data, spec, data.labels)
    assert all(len(set(sites[data.patient_ids == patient])) == 1 for patient in data.patient_ids[::50])
    np.testing.assert_array_equal(sites, assign(data, spec, data.labels))
    other = assign(data, spec.model_copy(update={"seed": 1}), data.labels)
    assert (sites != other).mean() > 0.3
    assert set(sites) == {f"hospital_{i:02d}" for i in range(1, 5)}


def test_iid_is_even_in_every_part() -> None:
    data = pool()
    sites = assign(data, HospitalsSpec(by="iid", count=5))
    for part in ("train", "test"):
        counts = np.unique(sites[data.split == part], return_counts=True)[1]
        assert counts.max() - counts.min() <= 2  # one patient of two scans


def test_sizes_are_kept() -> None:
    data = pool()
    for by in ("iid", "quantity_skew", "label_skew"):
        spec = HospitalsSpec(by=by, sizes=[5, 3, 2], alpha=1.0)  # type: ignore[arg-type]
        np.testing.assert_allclose(shares(assign(data, spec, data.labels)), [0.5, 0.3, 0.2], atol=0.01)


def test_label_skew_changes_prevalence_and_fades_with_alpha() -> None:
    data = pool()
    assert data.labels is not None

    def spread(alpha: float) -> float:
        sites = assign(data, HospitalsSpec(by="label_skew", count=5, alpha=alpha), data.labels)
        return float(np.std([data.labels[sites == name].mean() for name in np.unique(sites)]))

    assert spread(0.3) > 0.12
    assert spread(1e6) < 0.01


def test_label_skew_looks_the_same_in_train_and_test() -> None:
    data = pool(patients=4000)
    assert data.labels is not None
    sites = assign(data, HospitalsSpec(by="label_skew", count=3, alpha=0.7), data.labels)
    for name in np.unique(sites):
        train, test = (data.labels[(sites == name) & (data.split == part)].mean() for part in ("train", "test"))
        assert abs(train - test) < 0.05


def test_quantity_skew_is_uneven_and_keeps_prevalence() -> None:
    data = pool(patients=4000)
    assert data.labels is not None
    sites = assign(data, HospitalsSpec(by="quantity_skew", count=4, alpha=1.0))
    assert shares(sites).max() > 1.5 * shares(sites).min()
    large = np.unique(sites)[shares(sites).argmax()]
    assert abs(data.labels[sites == large].mean() - data.labels.mean()) < 0.05


def test_many_hospitals_of_few_patients() -> None:
    sites = assign(pool(patients=600), HospitalsSpec(by="iid", count=200))
    assert len(set(sites)) == 200


def test_skew_over_several_labels() -> None:
    labels = np.zeros((600, 3), np.float32)
    labels[:200, 0] = labels[150:400, 1] = 1
    data = dataset([f"p{i}" for i in range(600)], labels=labels)
    sites = assign(data, HospitalsSpec(by="label_skew", count=3, alpha=0.5), labels)
    assert np.std([labels[sites == name, 0].mean() for name in np.unique(sites)]) > 0.05
    assert (shares(sites) > 0.3).all()


def by_site(patients: Sequence[str], sites: Sequence[str], **given: object) -> Dataset:
    return dataset(patients, columns={"site": np.array(sites), "sex": np.array(["F"] * len(sites))}, **given)


def test_a_column_names_the_hospitals() -> None:
    data = by_site(["a", "a", "b"], ["north", "north", "south"])
    assert assign(data, HospitalsSpec()).tolist() == ["north", "north", "south"]


def test_a_patient_at_two_hospitals_is_refused() -> None:
    with pytest.raises(DataError, match="patient 'a' is at two hospitals, 'north' and 'south'"):
        assign(by_site(["b", "a", "a"], ["south", "north", "south"]), HospitalsSpec())


def test_a_missing_or_blank_column_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'site'"):
        assign(by_site(["a"], ["x"]), HospitalsSpec(column="sites"))
    with pytest.raises(DataError, match="1 scans have a blank 'site', the first of patient 'b'"):
        assign(by_site(["a", "b"], ["x", ""]), HospitalsSpec())
    with pytest.raises(DataError, match="simulate hospitals"):
        assign(dataset(["a"]), HospitalsSpec())


def test_a_hospital_that_cannot_train_is_refused_unless_held_out() -> None:
    data = by_site(["a", "b"], ["north", "south"], split=np.array(["train", "test"]))
    with pytest.raises(DataError, match=r"'south' has no training patient; name it in hospitals.held_out"):
        assign(data, HospitalsSpec())
    assert assign(data, HospitalsSpec(held_out=["south"])).tolist() == ["north", "south"]
    with pytest.raises(DataError, match="hospitals=9 are more than the 2 patients to train on; make fewer"):
        assign(pool(patients=3), HospitalsSpec(by="iid", count=9))


def test_held_out_names_are_checked() -> None:
    data = by_site(["a", "b"], ["north", "south"])
    with pytest.raises(StudyError, match="did you mean 'south'"):
        assign(data, HospitalsSpec(held_out=["soth"]))
    with pytest.raises(StudyError, match="leave at least one"):
        assign(data, HospitalsSpec(held_out=["north", "south"]))
    with pytest.raises(StudyError, match="hospital_03"):
        assign(data, HospitalsSpec(by="iid", count=2, held_out=["hospital_03"]))


def test_only_the_named_hospitals_take_part() -> None:
    data = by_site(["a", "b", "c", "d"], ["north", "south", "west", "north"], split=np.array(["train", "test", "test", "test"]))
    spec = HospitalsSpec(sites=["north"], held_out=["south"])
    assert assign(data, spec).tolist() == ["north", "south", "", "north"]
    assert (spec.training_sites, spec.taking_part) == (["north"], ["north", "south"])
    with pytest.raises(DataError, match="'west' has no training patient"):
        assign(data, HospitalsSpec(sites=["north", "west"]))
    with pytest.raises(StudyError, match=r"hospitals.sites='nort' is not known; did you mean 'north'"):
        assign(data, HospitalsSpec(sites=["nort"]))
    assert HospitalsSpec().training_sites == HospitalsSpec(held_out=["south"]).taking_part == []


def test_label_skew_without_labels_is_refused() -> None:
    with pytest.raises(StudyError, match="needs a task with labels"):
        assign(dataset(["a", "b"]), HospitalsSpec(by="label_skew", count=2))


def test_one_class_hospitals_are_found() -> None:
    assert one_class_sites(np.array(["a", "a", "b", "b"]), np.array([0, 1, 1, 1])) == {"b": 1}
