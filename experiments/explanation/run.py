"""Do the maps lie where the lesion is, and do they depend on what was learnt?

    python experiments/explanation/run.py [--out FOLDER] [--only NETWORK …]

Trains each network on phantoms (study.yaml, with the changes of NETWORKS), explains the class "lesion" of test scans that have
one, and writes results/table.md and results/results.json. A finished training is not repeated.
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedimaging.data.dataset import Dataset
from fedimaging.data.prepare import prepare
from fedimaging.models.zoo import build_model
from fedimaging.release.source import Source, open_run
from fedimaging.results import Interval
from fedimaging.training import weighted
from fedimaging.training.bootstrap import interval
from fedimaging.training.explain import Method, saliency
from fedimaging.training.explain_sanity import likeness, top_share

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NETWORKS: dict[str, tuple[str, ...]] = {
    "densenet": (),
    "resnet18": ("model={name: resnet18, options: {widen_factor: 0.25, stem_stride: 1}}", "training.learning_rate=0.002"),
    "wavelet_net": (
        "model={name: wavelet_net}",
        "training={optimizer: sgd, learning_rate: 4.0, batch_size: 100000, local_steps: 1}",
        "federation={algorithm: fedavgm, server_momentum: 0.9, rounds: 60}",
    ),
}
LESION, SCANS, SCANS_AT_RANDOM, RANDOM_SEEDS = 1, 100, 30, (101, 102, 103)  # random weights are looked at in fewer scans


def trained(name: str, out: Path) -> Source:
    """The finished run of one network."""
    run = out / name
    if not (run / "report.json").exists():
        command = [sys.executable, "-m", "fedimaging.cli", "simulate", str(HERE / "study.yaml"), "--out", str(run), "--quiet"]
        for change in NETWORKS[name]:
            command += ["-o", change]
        subprocess.run([*command, *(["--resume"] if run.exists() else [])], check=True, cwd=ROOT)
    return open_run(run)


def ill_scans(source: Source) -> tuple[Dataset, np.ndarray]:
    """The data with masks, and up to SCANS test rows with a lesion."""
    data = prepare(source.study.data, labels=["lesion"], needs_mask=True, classes=2, multilabel=False)
    assert data.labels is not None
    rows = source.test_rows()
    rows = rows[data.labels[rows] == LESION]
    return data, np.random.default_rng(0).permutation(rows)[:SCANS]


def over_patients(values: np.ndarray, patients: np.ndarray) -> Interval:
    """Mean of one value a scan, with a 95 % interval over patients; NaN left out."""
    known = np.isfinite(values)
    x = values[known]
    return interval(float(x.mean()), lambda weights: weighted.mean(x, weights), patients[known], resamples=2000, seed=0)


def networks_without_learning(source: Source) -> dict[str, list[nn.Module]]:
    """Adebayo et al.: the last layer alone at random, and all layers."""
    study = source.study
    whole = [
        build_model(study.model, in_channels=study.data.channels, out_channels=2, image_size=study.data.image_size, seed=seed)
        for seed in RANDOM_SEEDS
    ]
    heads = []
    for fresh in whole:
        mixed = copy.deepcopy(source.bench.model)
        last = [name for name, _ in mixed.named_parameters()][-1].rpartition(".")[0]
        mixed.get_submodule(last).load_state_dict(fresh.get_submodule(last).state_dict())
        heads.append(mixed)
    return {"last layer": heads, "all layers": whole}


def measure(source: Source, method: Method) -> dict[str, Any]:
    """Every figure of one network and method."""
    data, rows = ill_scans(source)
    assert data.masks is not None
    patients, began = data.patient_ids[rows], time.monotonic()
    images, masks = [np.array(data.images[row]) for row in rows], [np.array(data.masks[row]) for row in rows]
    maps = [saliency(source.bench.model, image, LESION, method) for image in images]
    seconds = (time.monotonic() - began) / len(rows)
    inside = np.array([top_share(one.values, mask) for one, mask in zip(maps, masks, strict=True)])
    area = np.array([(mask > 0).mean() for mask in masks])
    figures: dict[str, Any] = {
        "auroc": source.report["test"]["auroc"]["value"], "scans": len(rows), "seconds": round(seconds, 3),
        "empty": sum(one.peak <= 0 for one in maps), "why": maps[0].why,
        "inside": over_patients(inside, patients).as_json(), "chance": over_patients(area, patients).as_json(),
        "gain": over_patients(inside / area.mean(), patients).as_json(),
    }
    for what, others in networks_without_learning(source).items():
        alike = np.array([
            [likeness(one.values, saliency(other, image, LESION, method).values) for other in others]
            for one, image in zip(maps[:SCANS_AT_RANDOM], images[:SCANS_AT_RANDOM], strict=True)
        ])
        known = np.isfinite(alike)
        mean = np.where(known, alike, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
        figures[f"likeness, {what} at random"] = over_patients(mean, patients[:SCANS_AT_RANDOM]).as_json()
    return figures


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    def cell(one: dict[str, Any], digits: int = 3) -> str:
        return f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"

    lines = [
        "| network (AUROC) | method | top 5 % of the map inside the lesion | chance: its share of the area | times chance | "
        "rank correlation with last layer at random | with all layers at random | empty maps | seconds a scan |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, one in results.items():
        network, method = key.split("/")
        lines.append(
            f"| {network} ({one['auroc']:.3f}) | {method} | {cell(one['inside'])} | {cell(one['chance'], 4)} | "
            f"{cell(one['gain'], 1)} | {cell(one['likeness, last layer at random'], 2)} | "
            f"{cell(one['likeness, all layers at random'], 2)} | {one['empty']} of {one['scans']} | {one['seconds']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what was asked for and write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "runs")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    results_folder = HERE / "results"
    results_folder.mkdir(exist_ok=True)
    kept = results_folder / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text())["rows"] if kept.exists() else {}
    for name in options.only:
        source = trained(name, options.out.resolve())
        methods: tuple[Method, ...] = ("occlusion",) if name == "wavelet_net" else ("grad_cam", "occlusion")
        for method in methods:
            results[f"{name}/{method}"] = measure(source, method)
            facts = {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "python": platform.python_version(),
                     "torch": version("torch"), "monai": version("monai")}
            kept.write_text(json.dumps({"facts": facts, "rows": results}, indent=1) + "\n")
            (results_folder / "table.md").write_text(table(results))
            print(table({f"{name}/{method}": results[f"{name}/{method}"]}).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
