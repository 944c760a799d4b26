"""DICOM series and NIfTI volumes train and report through a manifest alone, with nothing but a study."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.study.schema import Study


def _manifest(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _report(study: Study, out: Path) -> dict[str, Any]:
    with LiveView(study.federation.rounds, quiet=True) as view:
        path = simulate(study, out, Options(workers=1), view)
    assert (out / "report.html").stat().st_size > 20_000
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


VOLUMES = (
    "data.source=manifest", "data.phantoms=null", "data.image_size=[16,16,16]", "data.intensity=percentile",
    "hospitals.column=site", "privacy.noise_multiplier=1.0", "privacy.target_epsilon=null", "privacy.engine=loop",
    "privacy.delta=0.01",
)


def test_folders_of_dicom_series(tiny_study: Callable[..., Study], shared_data: Path, tmp_path: Path) -> None:
    """The real data hold two series; copies of them stand for the scans of several patients here."""
    series = [shared_data / "dicom" / name for name in ("PGBM-003_T1post", "PGBM-003_HippoCrop")]
    for i in range(12):
        shutil.copytree(series[i % 2], tmp_path / f"series_{i}")
    _manifest(tmp_path / "manifest.csv", [
        {"image": f"series_{i}", "label": i % 2, "patient_id": f"p{i:02d}", "site": "ab"[i // 6], "split": split}
        for i, split in enumerate(["train", "train", "train", "train", "test", "test"] * 2)
    ])
    study = tiny_study(*VOLUMES, f"data.path={tmp_path / 'manifest.csv'}", "task.label=label", "task.class_names=null")
    report = _report(study, tmp_path / "run")
    assert report["sites"]["a"]["patients"] == 4
    assert report["test"]["auroc"]["n_patients"] == 4
    assert report["sites"]["b"]["privacy"]["epsilon"] > 0


def test_a_manifest_of_nifti_volumes_with_masks(tiny_study: Callable[..., Study], shared_data: Path, tmp_path: Path) -> None:
    cases = sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))[:6]
    rows = [
        {"image": str(case), "mask": str(case.parents[1] / "labels" / case.name), "patient_id": case.stem, "site": "ab"[i % 2],
         "split": "test" if i > 3 else "train"}
        for i, case in enumerate(cases)
    ]
    _manifest(tmp_path / "manifest.csv", rows)
    study = tiny_study(
        *VOLUMES, f"data.path={tmp_path / 'manifest.csv'}", "data.spacing_mm=[3,3,3]", "task={kind: segmentation, classes: 3}",
        "model={name: unet, options: {channels: [4, 8], num_res_units: 0}}",
    )
    report = _report(study, tmp_path / "run")
    assert {"dice", "surface_dice", "hd95_mm", "dice_1", "dice_2"} <= report["test"].keys()
    assert 0 <= report["test"]["dice"]["value"] <= 1
