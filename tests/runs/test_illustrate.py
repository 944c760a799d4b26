"""The report's examples: each with a map, in pictures and in words."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.report import read_report
from fedimaging.runs.simulate import simulate


def run(study: object, out: Path) -> tuple[dict, str]:
    with LiveView(1, quiet=True) as view:
        simulate(study, out, Options(workers=1), view)  # type: ignore[arg-type]
    return read_report(out), (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("model", "method"), [("small_cnn", "grad_cam"), ("wavelet_net", "occlusion")])
def test_each_example_of_a_classifier_says_what_is_marked_and_how(
    tiny_study: Callable[..., object], tmp_path: Path, model: str, method: str
) -> None:
    options = "{width: 4}" if model == "small_cnn" else "{}"
    study = tiny_study("federation.rounds=1", "privacy=null", f"model.name={model}", f"model.options={options}")
    report, page = run(study, tmp_path / "run")
    for one in report["pictures"]["examples"]:
        assert one["map"]["method"] == method
        assert one["map"]["class"] == one["prediction"]
        with Image.open(tmp_path / "run" / one["file"]) as picture:
            assert picture.size == (324, 160)
    assert f"marked: what speaks for {report['pictures']['examples'][0]['prediction']}" in page
    assert ("Grad-CAM: where" if method == "grad_cam" else "Occlusion: how far") in page
    assert "Scale of the maps" in page


def test_a_segmentation_shows_where_it_is_unsure(tiny_study: Callable[..., object], tmp_path: Path) -> None:
    study = tiny_study(
        "federation.rounds=1", "privacy=null", "task={kind: segmentation}", "model.name=unet",
        "model.options={channels: [4, 8], num_res_units: 1}",
    )
    report, page = run(study, tmp_path / "run")
    for one in report["pictures"]["examples"]:
        assert one["map"]["method"] == "uncertainty"
        with Image.open(tmp_path / "run" / one["file"]) as picture:
            assert picture.size == (488, 160)
    assert "Uncertainty: entropy" in page
