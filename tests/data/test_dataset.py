"""A stored data set is mapped, chosen from, and never altered through the map."""

from pathlib import Path

import numpy as np
import pytest

from fedimaging.data.dataset import Dataset
from fedimaging.data.prepare import prepare
from fedimaging.data.spec import DataSpec, PhantomSpec
from fedimaging.errors import DataError

PHANTOMS = DataSpec(image_size=(12, 12), phantoms=PhantomSpec(patients=8, hospitals=2))


@pytest.fixture
def stored(tmp_path: Path) -> Dataset:
    return prepare(PHANTOMS, labels=["lesion"], needs_mask=True, classes=2, multilabel=False, cache_dir=tmp_path)


def test_reopening_gives_the_same(stored: Dataset) -> None:
    assert stored.store_dir is not None
    again = Dataset.open(stored.store_dir)
    assert again.fingerprint == stored.fingerprint
    np.testing.assert_array_equal(again.images, stored.images)
    np.testing.assert_array_equal(again.columns["sex"], stored.columns["sex"])
    assert isinstance(again.images, np.memmap)
    assert isinstance(again.masks, np.memmap)
    assert again.n_patients == 8


def test_writing_to_the_map_never_reaches_the_store(stored: Dataset) -> None:
    assert stored.store_dir is not None
    before = float(stored.images[0, 0, 0, 0])
    stored.images[0, 0, 0, 0] = 9
    assert Dataset.open(stored.store_dir).images[0, 0, 0, 0] == before


def test_select_by_numbers_runs_and_truths(stored: Dataset) -> None:
    odd = stored.select([3, 1])
    np.testing.assert_array_equal(odd.images, stored.images[[3, 1]])
    assert odd.patient_ids.tolist() == stored.patient_ids[[3, 1]].tolist()
    assert isinstance(stored.select(range(2, 5)).images, np.memmap)
    chosen = stored.select(stored.split == "train")
    assert len(chosen) == (stored.split == "train").sum()
    assert chosen.labels is not None
    assert len(chosen.labels) == len(chosen)
    assert chosen.store_dir is None
    assert stored.select([-2, -1]).patient_ids.tolist() == stored.patient_ids[-2:].tolist()
    assert len(stored.select([])) == 0


def test_an_altered_store_says_what_to_do(stored: Dataset) -> None:
    assert stored.store_dir is not None
    next(stored.store_dir.parent.glob("pixels-*/images.npy")).unlink()
    with pytest.raises(DataError, match="delete it"):
        Dataset.open(stored.store_dir)
    with pytest.raises(DataError, match="not a complete store"):
        Dataset.open(stored.store_dir / "nowhere")
