"""A segmentation is released and predicts masks on the grid of the file that it was given."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedimaging.data import synthetic
from fedimaging.data.readers import read_scan
from fedimaging.data.spec import DataSpec
from fedimaging.files import sha256_of
from fedimaging.release.folder import release
from fedimaging.release.inference import Prepare, write_mask
from fedimaging.release.opened import open_release
from fedimaging.release.predict import TABLE, predict
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.study.load import load
from tests.release.conftest import KEY, PEOPLE, ROOT


def quiet(text: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def segmenting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = load(ROOT / "configs" / "quickstart.yaml", [
        "name=masks", "data.image_size=[16,16]", "data.phantoms={patients: 60, hospitals: 2, scans_per_patient: [1, 1]}",
        "data.split.test=0.5", "task={kind: segmentation, classes: 2, class_names: [background, lesion]}",
        "model={name: unet, options: {channels: [4, 8], num_res_units: 0}}", "privacy=null",
        "training={optimizer: adam, learning_rate: 0.01, batch_size: 8, local_epochs: 4}",
        "federation={algorithm: fedavg, rounds: 2}", "evaluation={resamples: 100, examples: 0}",
        "runtime={workers: 1, device: cpu}", "release={minimum_external: 0.0}",
    ])  # fmt: skip
    folder = tmp_path_factory.mktemp("segmentation")
    with LiveView(2, quiet=True) as view:
        simulate(study, folder / "run", Options(report=False, workers=1), view)
    return release(folder / "run", PEOPLE, KEY, {"external": "no hospital was held out"}, folder / "release")


def test_masks_are_written_and_counted(segmenting: Path, tmp_path: Path) -> None:
    opened = open_release(segmenting)
    phantoms = opened.study.data.phantoms
    assert phantoms is not None
    scan = next(iter(synthetic.render(phantoms, synthetic.draw_scans(phantoms), (16, 16))))
    Image.fromarray(np.kron(scan.image[0], np.ones((2, 2), np.uint8))).save(tmp_path / "large.png")
    result = predict(opened, [tmp_path / "large.png"], tmp_path / "out", quiet)[0]
    mask_file = next((tmp_path / "out" / "masks").iterdir())
    mask = np.asarray(Image.open(mask_file))
    assert result.facts["map"]["method"] == "uncertainty"
    assert result.facts["map"]["sha256"] == sha256_of(next((tmp_path / "out" / "maps").iterdir()))
    assert mask.shape == (32, 32)
    assert set(np.unique(mask)) <= {0, 1}
    assert result.facts["mask_sha256"] == sha256_of(mask_file)
    assert result.facts["voxels"]["lesion"] == mask.sum() / 4
    assert sum(result.facts["voxels"].values()) == 256
    expected = opened.predict(opened.prepare(tmp_path / "large.png")[None]).probability[0].argmax(0)
    assert np.array_equal(mask[::2, ::2], expected)
    with (tmp_path / "out" / TABLE).open(newline="") as file:
        assert next(csv.DictReader(file))["lesion"] == str(result.facts["voxels"]["lesion"])
    assert (segmenting / "card.md").read_text(encoding="utf-8").count("Dice") >= 1


def test_a_mask_lies_where_its_volume_lies_whatever_the_axes_of_the_file(tmp_path: Path) -> None:
    """A bright box, found by a threshold on the prepared scan, comes back to the very voxels of a file in LPS axes."""
    volume = np.zeros((9, 12, 7), np.float32)
    volume[2:5, 3:7, 1:4] = 100
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    affine[:3, 3] = (31, -7, 12)
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    spec = DataSpec(source="manifest", path="not-released", image_size=(16, 10, 8), intensity="unit")
    data = spec.model_dump(mode="json")
    image, scan = Prepare(data).both(path)
    written = write_mask(image[0] > 0.5, scan, data, tmp_path / "out", "mask")
    back = nibabel.load(written)
    assert np.allclose(back.affine, affine)
    assert np.array_equal(np.asarray(back.dataobj), (volume > 0).astype(np.uint8))
    again = read_scan(written)
    assert np.array_equal(again.pixels[0] > 0, scan.pixels[0] > 0)


def test_a_mask_comes_back_from_another_spacing(tmp_path: Path) -> None:
    volume = np.zeros((8, 8, 8), np.float32)
    volume[:4] = 100
    path = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    data = DataSpec(
        source="manifest", path="not-released", image_size=(16, 16, 16), intensity="unit", spacing_mm=(1.0, 1.0, 1.0)
    ).model_dump(mode="json")
    image, scan = Prepare(data).both(path)
    back = nibabel.load(write_mask(image[0] > 0.5, scan, data, tmp_path, "mask"))
    assert np.allclose(back.affine, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert np.array_equal(np.asarray(back.dataobj), (volume > 0).astype(np.uint8))
