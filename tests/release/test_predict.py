"""Predictions are the run's own scores, flagged where an image is strange, and traced back line by line."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedimaging.cli import app
from fedimaging.errors import DataError, LedgerError, ReleaseError
from fedimaging.files import sha256_of
from fedimaging.release.folder import release
from fedimaging.release.opened import Release, open_release
from fedimaging.release.predict import LOG, TABLE, images_in, predict
from fedimaging.release.source import open_run
from fedimaging.release.trace import trace
from fedimaging.release.verify import verify
from fedimaging.site import audit_log
from tests.release.conftest import KEY, PEOPLE, Planted, change


def quiet(text: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def opened(released: Path) -> Release:
    return open_release(released)


def noise_images(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(7)
    folder.mkdir()
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16)).astype(np.uint8)).save(folder / f"noise{k}.png")
    return sorted(folder.iterdir())


def test_probabilities_are_the_scores_of_the_run(opened: Release, finished: Path, planted: Planted, tmp_path: Path) -> None:
    source = open_run(finished)
    with torch.no_grad():
        scores = source.bench.task.scores(source.bench.model(torch.from_numpy(np.array(source.dataset.images)))).numpy()
    results = predict(opened, planted.images[:20], tmp_path, quiet, maps=False)
    found = [[r.facts["probabilities"][name] for name in ("no lesion", "lesion")] for r in results]
    assert np.abs(np.array(found) - scores[:20]).max() < 1e-6
    assert [r.facts["predicted"] for r in results] == [["no lesion", "lesion"][k : k + 1] for k in scores[:20].argmax(1)]


def test_noise_is_flagged_and_phantoms_are_not(opened: Release, planted: Planted, tmp_path: Path) -> None:
    images = [*planted.images[:100], *noise_images(tmp_path / "noise", 10)]
    flagged = [result.facts["flagged"] for result in predict(opened, images, tmp_path / "out", quiet, maps=False)]
    assert all(flagged[100:])
    assert sum(flagged[:100]) <= 2


def test_a_model_without_enough_test_patients_flags_nothing_and_says_so(released: Path, planted: Planted, tmp_path: Path) -> None:
    opened = open_release(released)
    opened.reference["strangeness"].update(input=None, features=None)  # type: ignore[attr-defined]
    facts = predict(opened, planted.images[:1], tmp_path, quiet, maps=False)[0].facts
    assert (facts["strangeness"], facts["flagged"]) == (None, False)


def test_probabilities_are_calibrated_and_the_operating_point_is_not(run: Path, planted: Planted, tmp_path: Path) -> None:
    tree = {"schema": "1", "kind": "temperature", "temperature": 4.0, "bias": 0.0, "fitted_on": "validation", "charge": None}
    (run / "calibration.json").write_text(json.dumps(tree), encoding="utf-8")
    plain = open_release(release(run, PEOPLE, KEY, {}, tmp_path / "first"))
    before = plain.predict(plain.prepare(planted.images[0])[None])
    odds = np.log(before.uncalibrated[0, 1] / before.uncalibrated[0, 0])
    threshold = float(before.uncalibrated[0, 1])
    change(run / "report.json", lambda report: report.update(operating_point={
        "aim": "sensitivity", "target": 0.9, "threshold": threshold, "from": "scores", "validation": {"n_patients": 3},
    }))  # fmt: skip
    opened = open_release(release(run, PEOPLE, KEY, {}, tmp_path / "second"))
    facts = predict(opened, planted.images[:1], tmp_path / "out", quiet, maps=False)[0].facts
    assert facts["calibrated"]
    assert np.log(facts["probabilities"]["lesion"] / facts["probabilities"]["no lesion"]) == pytest.approx(odds / 4, rel=1e-6)
    assert facts["positive"] is True
    config = json.loads((tmp_path / "second" / "bundle" / "configs" / "inference.json").read_text(encoding="utf-8"))
    assert config["calibration"]["temperature"] == 4.0
    assert "n_patients" not in (tmp_path / "second" / "operating_point.json").read_text(encoding="utf-8")


def test_an_image_that_cannot_be_read_stops_nobody_else(released: Path, planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(planted.images[0], tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_text("no picture", encoding="utf-8")
    shutil.copy(planted.images[1], tmp_path / "images" / "c.png")
    out = tmp_path / "out"
    answer = CliRunner().invoke(app, ["predict", str(released), str(tmp_path / "images"), "--out", str(out)])
    assert answer.exit_code == 2
    assert "2 predicted, 0 flagged, 1 not readable" in answer.stdout
    assert "cannot be read as picture" in answer.stdout
    with (out / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["log_line"] for row in rows] == ["1", "", "2"]
    assert rows[1]["fault"]
    assert [event["image_sha256"] for event in audit_log.read(out / LOG)] == [sha256_of(path) for path in planted.images[:2]]


def test_images_come_from_files_folders_and_manifests(opened: Release, planted: Planted, tmp_path: Path) -> None:
    assert images_in(opened, [planted.manifest]) == list(planted.images)
    assert images_in(opened, [planted.images[3], planted.images[1]]) == [planted.images[3], planted.images[1]]
    with pytest.raises(DataError, match="is missing"):
        images_in(opened, [tmp_path / "nothing.png"])
    (tmp_path / "empty").mkdir()
    nothing = predict(opened, images_in(opened, [tmp_path / "empty"]), tmp_path / "out", quiet, maps=False)[0]
    assert nothing.fault is not None
    assert "holds no DICOM file" in nothing.fault


def test_a_release_that_was_altered_predicts_nothing(released: Path, planted: Planted, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "release")
    (tmp_path / "release" / "bundle" / "models" / "model.pt").write_bytes(b"another model")
    command = ["predict", str(tmp_path / "release"), str(planted.images[0]), "--out", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(app, command).exception, ReleaseError)
    assert not (tmp_path / "out").exists()


def test_any_prediction_is_traced_to_model_people_study_and_ledgers(
    opened: Release, released: Path, planted: Planted, tmp_path: Path
) -> None:
    predict(opened, planted.images[:3], tmp_path, quiet, maps=False)
    predict(opened, planted.images[3:5], tmp_path, quiet, maps=False)  # the log goes on
    manifest = verify(released)
    lines = trace(released, manifest, tmp_path / LOG, "4")
    assert lines == trace(released, manifest, tmp_path / LOG, str(planted.images[3]))
    said = "\n".join(lines)
    assert "line 4 of 5" in said
    for fact in (
        sha256_of(planted.images[3]), manifest["model_sha256"], manifest["study_fingerprint"],
        "Dr Ada Example (head of radiology)", manifest["ledgers"]["north"]["head"], "per patient", "none waived",
    ):
        assert fact in said
    for wrong in ("6", "0", "-1", "nothing.png"):
        with pytest.raises(ReleaseError, match="neither an image nor a line"):
            trace(released, manifest, tmp_path / LOG, wrong)
    with pytest.raises(ReleaseError, match="has no prediction of it"):
        trace(released, manifest, tmp_path / LOG, str(planted.images[9]))
    answer = CliRunner().invoke(app, ["trace", str(released), str(tmp_path / LOG), "4"])
    assert answer.stdout == said + "\n"


def test_a_log_that_was_altered_or_of_another_release_is_not_believed(
    opened: Release, released: Path, run: Path, planted: Planted, tmp_path: Path
) -> None:
    predict(opened, planted.images[:2], tmp_path, quiet, maps=False)
    other = release(run, PEOPLE, KEY, {}, tmp_path / "other")
    with pytest.raises(ReleaseError, match="predicted by another release"):
        trace(other, verify(other), tmp_path / LOG, "1")
    text = (tmp_path / LOG).read_text(encoding="utf-8")
    (tmp_path / LOG).write_text(text.replace('"flagged": false', '"flagged": true', 1), encoding="utf-8")
    with pytest.raises(LedgerError, match="line 1 breaks the hash chain"):
        trace(released, verify(released), tmp_path / LOG, "2")
    with pytest.raises(LedgerError, match="breaks the hash chain"):
        predict(opened, planted.images[:1], tmp_path, quiet, maps=False)


def test_each_prediction_has_a_map_that_the_log_knows(opened: Release, planted: Planted, tmp_path: Path) -> None:
    results = predict(opened, planted.images[:2], tmp_path, quiet)
    for result in results:
        path = tmp_path / "maps" / f"{result.facts['image_sha256'][:16]}.png"
        assert sha256_of(path) == result.facts["map"]["sha256"]
        assert [result.facts["map"]["of"]] == result.facts["predicted"]
        with Image.open(path) as picture:
            assert picture.width > 2 * 300
    line = trace(opened.folder, opened.manifest, tmp_path / LOG, "2")[3]
    assert line == f"map: {results[1].facts['map']['method']}, for {results[1].facts['map']['of']}, sha256 {sha256_of(path)}"


def test_the_log_names_no_file(opened: Release, planted: Planted, tmp_path: Path) -> None:
    predict(opened, planted.images[:3], tmp_path, quiet, maps=False)
    text = (tmp_path / LOG).read_text(encoding="utf-8")
    assert not any(word in text for word in planted.words)
    first: dict[str, Any] = json.loads(text.split("\n")[0])
    assert first["release_sha256"] == sha256_of(opened.folder / "manifest.json")
