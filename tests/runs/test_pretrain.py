"""Fitting a fixed stage to generated images, and a study that then trains on it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from fedimaging.errors import StudyError
from fedimaging.runs.pretrain import pretrain
from fedimaging.site.plan import prepare_data
from fedimaging.study.load import parse
from fedimaging.study.schema import Study
from fedimaging.training.workbench import build_workbench


def _study(tmp_path: Path, seed: int = 0, **model: Any) -> Study:
    options = {"scales": 1, "angles": 2, "grid": 2, "components": 4}
    return parse({
        "name": "s",
        "data": {"source": "phantoms", "image_size": [16, 16], "phantoms": {"patients": 30, "hospitals": 2, "seed": seed}},
        "task": {"kind": "binary", "label": "lesion"},
        "hospitals": {"by": "column", "column": "site"},
        "model": {"name": "wavelet_net", "options": options, "weights": str(tmp_path / "stage.safetensors")} | model,
        "training": {"learning_rate": 1.0, "batch_size": 100, "local_steps": 1},
        "privacy": {"target_epsilon": 8.0, "delta": 1e-3},
        "federation": {"rounds": 1},
    }, "test")


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDIMAGING_CACHE", str(tmp_path / "store"))


def test_the_file_it_writes_is_the_one_the_study_trains_on(tmp_path: Path) -> None:
    study, public = _study(tmp_path), _study(tmp_path, seed=9)
    path, digest = pretrain(study, public)
    assert path == tmp_path / "stage.safetensors"
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    pinned = _study(tmp_path, weights_sha256=digest)
    bench = build_workbench(
        model=pinned.model, task=pinned.task, training=pinned.training, privacy=pinned.privacy, rounds=1, proximal_mu=0.0,
        local_parameters="none", channels=1, image_size=(16, 16), seed=0, device="cpu",
    )
    features = bench.features_of(prepare_data(pinned))
    assert features is not None
    assert features.shape[1] == 4
    assert bench.shared_size == 2 * (4 + 1)
    assert pretrain(study, public)[1] == digest, "the same images give the same file"
    assert pretrain(study, _study(tmp_path, seed=10))[1] != digest


def test_what_cannot_be_fitted_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    public = _study(tmp_path, seed=9)
    with pytest.raises(StudyError, match="has no stage that images alone can fit"):
        pretrain(_study(tmp_path, name="small_cnn", options={}), public)
    with pytest.raises(StudyError, match=r"model\.options\.components is not given"):
        pretrain(_study(tmp_path, options={"scales": 1}), public)
    with pytest.raises(StudyError, match=r"must end in \.safetensors"):
        pretrain(_study(tmp_path), public, tmp_path / "stage.bin")
    assert not list(tmp_path.glob("stage*"))
