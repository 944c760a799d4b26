"""MONAI's own command line verifies the bundle and runs it, without fedimaging, to the very scores of the run."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from fedimaging.release.bundle import SCHEMA
from fedimaging.release.inference import Prepare, find_images, load_script, run_bundle
from fedimaging.release.source import open_run
from tests.release.conftest import Planted


def own_scores(finished: Path) -> np.ndarray:
    """(N, 2) of every scan of the data, in the manifest's order, by the network that the run left."""
    import torch

    source = open_run(finished)
    with torch.no_grad():
        return source.bench.task.scores(source.bench.model(torch.from_numpy(np.array(source.dataset.images)))).numpy()


def scores_in(path: Path) -> np.ndarray:
    with path.open(newline="") as file:
        return np.array([[float(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]])


def test_what_the_bundle_does_gives_the_scores_of_the_run(
    released: Path, finished: Path, planted: Planted, tmp_path: Path
) -> None:
    config = json.loads((released / "bundle" / "configs" / "inference.json").read_text(encoding="utf-8"))
    network = load_script(released / "bundle" / "models" / "model.ts")
    path = run_bundle(network, Prepare(config["preprocessing"]["data"]), planted.images, config["task"], None, tmp_path)
    assert np.abs(scores_in(path) - own_scores(finished)).max() < 1e-5


def test_the_copied_code_needs_no_fedimaging(released: Path) -> None:
    for path in (released / "bundle" / "scripts").glob("*.py"):
        names = {
            name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                         [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        }
        assert not any(str(name).startswith("fedimaging") for name in names)


def test_metadata_keep_to_the_specification(released: Path) -> None:
    metadata = json.loads((released / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    jsonschema.validate(metadata, SCHEMA)
    del metadata["network_data_format"]["inputs"]["image"]["dtype"]
    with pytest.raises(jsonschema.ValidationError, match="'dtype' is a required property"):
        jsonschema.validate(metadata, SCHEMA)


def test_images_are_found_in_files_and_folders(tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for name in ("1.dcm", "2.dcm"):
        (series / name).touch()
    (tmp_path / "b.png").touch()
    (tmp_path / ".hidden").touch()
    assert find_images(tmp_path) == [tmp_path / "b.png", series]
    assert find_images([tmp_path / "b.png"]) == [tmp_path / "b.png"]
    assert find_images(series) == [series]


@pytest.mark.slow
def test_monai_verifies_and_runs_the_bundle(released: Path, finished: Path, planted: Planted, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(released / "bundle", bundle)
    images = tmp_path / "images"
    images.mkdir()
    for path in planted.images:
        shutil.copy(path, images)

    def monai(*arguments: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, "-m", "monai.bundle", *arguments]
        done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    metadata, config = "configs/metadata.json", "configs/inference.json"
    assert "metadata is verified with no error" in monai(
        "verify_metadata", "--meta_file", metadata, "--filepath", "docs/metadata_schema.json"
    )
    assert "data shape of network is verified with no error" in monai(
        "verify_net_in_out", "network", "--meta_file", metadata, "--config_file", config
    )
    monai("run", "--config_file", config, "--dataset_dir", str(images), "--output_dir", str(tmp_path / "out"))
    assert np.abs(scores_in(tmp_path / "out" / "predictions.csv") - own_scores(finished)).max() < 1e-5
