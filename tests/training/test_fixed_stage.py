"""What enters the only layer that trains is computed once, and nothing else about training changes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedimaging.data.dataset import Dataset
from fedimaging.data.prepare import prepare
from fedimaging.data.spec import AugmentSpec, DataSpec
from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import build_model
from fedimaging.training.fixed_stage import features_of, last_layer
from fedimaging.training.local import train_locally
from fedimaging.training.spec import LocalTraining
from fedimaging.training.task_spec import TaskSpec
from fedimaging.training.workbench import SiteRecords, Workbench, build_workbench

SPEC = DataSpec.model_validate({
    "source": "phantoms", "image_size": [16, 16], "phantoms": {"patients": 24, "hospitals": 1}, "split": {"test": 0.2},
})


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return prepare(SPEC, labels=["lesion"], needs_mask=False, classes=2, multilabel=False, cache_dir=tmp_path)


def _bench(model: dict[str, object], **training: object) -> Workbench:
    return build_workbench(
        model=ModelSpec.model_validate(model), task=TaskSpec(kind="binary", label="lesion"),
        training=LocalTraining.model_validate({"batch_size": 8, "local_steps": 3, "learning_rate": 0.1} | training),
        privacy=None, rounds=1, proximal_mu=0.0, local_parameters="none", channels=1, image_size=(16, 16), seed=0, device="cpu",
    )


@pytest.mark.parametrize("model", [{"name": "wavelet_net"}, {"name": "small_cnn", "trainable": "head"}])
def test_training_from_features_is_training_from_scans(model: dict[str, object], dataset: Dataset) -> None:
    bench = _bench(model)
    features = bench.features_of(dataset)
    assert features is not None
    assert features.shape == (len(dataset), bench.last_layer.in_features)  # type: ignore[union-attr]
    rows = np.flatnonzero(dataset.split == "train")
    ends = [
        train_locally(bench, bench.initial, SiteRecords(dataset, rows, given), None, None, key="k", round=1).end
        for given in (None, features)
    ]
    assert np.allclose(ends[0], ends[1], atol=1e-6)
    assert np.abs(ends[0] - bench.initial).max() > 1e-4


def test_features_are_kept_beside_the_scans_and_known_by_the_fixed_part(dataset: Dataset) -> None:
    first, again = _bench({"name": "wavelet_net"}), _bench({"name": "wavelet_net"})
    wider = _bench({"name": "wavelet_net", "options": {"angles": 4}})
    kept = first.features_of(dataset)
    files = list(dataset.store_dir.glob("features-*.npy"))  # type: ignore[union-attr]
    assert len(files) == 1
    np.save(files[0], np.full_like(kept, 7.0))  # what the second bench reads is the file, not a new computation
    assert (np.asarray(again.features_of(dataset)) == 7.0).all()
    assert wider.features_of(dataset).shape[1] < kept.shape[1]  # type: ignore[union-attr]
    assert len(list(dataset.store_dir.glob("features-*.npy"))) == 2  # type: ignore[union-attr]


def test_a_data_set_without_a_store_is_computed_each_time(dataset: Dataset) -> None:
    bench = _bench({"name": "wavelet_net"})
    assert bench.last_layer is not None
    some = features_of(bench.model, bench.last_layer, dataset.select([3, 1]))
    assert np.allclose(some, bench.features_of(dataset)[[3, 1]], atol=1e-6)  # type: ignore[index]


def test_no_features_where_more_than_the_last_layer_trains_or_scans_are_augmented(dataset: Dataset) -> None:
    assert _bench({"name": "small_cnn"}).features_of(dataset) is None
    bench = _bench({"name": "wavelet_net"})
    bench.training = bench.training.model_copy(update={"augment": AugmentSpec(flip=True)})
    assert bench.features_of(dataset) is None


def test_a_layer_that_is_not_the_last_is_not_taken() -> None:
    class Squared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1)).square()

    assert last_layer(Squared(), (1, 4, 4)) is None
    model = build_model(ModelSpec(name="small_cnn"), in_channels=1, out_channels=2, image_size=(16, 16), seed=0)
    assert last_layer(model, (1, 16, 16)) is None
