"""How often does monitoring raise an alarm without cause, and which drifts does it find, with how many patients?

    python experiments/monitoring/run.py [--out FOLDER] [--looks 200] [--data FOLDER_OF_REAL_IMAGES]

On phantoms (study.yaml): looks at new patients of the same kind, and at patients with a planted drift, against a release. With
--data also the real chest X-rays (configs/chest_x_ray_sites.yaml): the hospital that never trained, as it is and with planted
drifts. Writes results/table.md and results/results.json; the pages of the real hospital stay in --out.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from scipy import ndimage
from scipy.stats import binomtest

from fedimaging.data import synthetic
from fedimaging.data.spec import PhantomSpec
from fedimaging.release.card import People
from fedimaging.release.drift import Drift, judged, worst
from fedimaging.release.folder import release
from fedimaging.release.monitor import NewScans, compare, look
from fedimaging.release.opened import Release, open_release

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEOPLE = People("experiments/monitoring", "experiment", "to be monitored")
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
DRIFTS: dict[str, tuple[Change, dict[str, Any], float]] = {
    "none": (lambda x, _: x, {}, 0.0),
    "brighter by 0.02": (lambda x, _: x + 0.02, {}, 0.0),
    "brighter by 0.05": (lambda x, _: x + 0.05, {}, 0.0),
    "noise, deviation 0.03": (lambda x, rng: x + rng.normal(0, 0.03, x.shape), {}, 0.0),
    "blur, 0.7 pixels": (lambda x, _: ndimage.gaussian_filter(x, 0.7), {}, 0.0),
    "prevalence 0.3 to 0.5": (lambda x, _: x, {"prevalence": (0.5, 0.5)}, 0.0),
    "prevalence 0.3 to 0.7": (lambda x, _: x, {"prevalence": (0.7, 0.7)}, 0.0),
    "10 % of labels wrong": (lambda x, _: x, {}, 0.1),
    "25 % of labels wrong": (lambda x, _: x, {}, 0.25),
}
SHOWN = (("input", "mean"), ("input", "sharpness"), ("scores", "lesion"), ("performance", "auroc"))


def released(study: Path, out: Path, *changes: str) -> Release:
    """Train, release and open; what is there already is not made again."""
    if not (out / "run" / "report.json").exists():
        command = [sys.executable, "-m", "fedimaging.cli", "simulate", str(study), "--out", str(out / "run"), "--quiet"]
        subprocess.run([*command, "--no-report", *(part for one in changes for part in ("-o", one))], check=True, cwd=ROOT)
    if not (out / "release").exists():
        release(out / "run", PEOPLE, Ed25519PrivateKey.generate(), {}, out / "release")
    return open_release(out / "release")


def new_scans(opened: Release, name: str, patients: int, seed: int) -> NewScans:
    """New patients with a planted drift, as a manifest of them would be read."""
    change, population, wrong = DRIFTS[name]
    assert opened.study.data.phantoms is not None
    spec: PhantomSpec = opened.study.data.phantoms.model_copy(update={"patients": patients, "seed": 10_000 + seed, **population})
    people, rng = synthetic.draw_scans(spec), np.random.default_rng([seed, 1])
    seen = [scan.image[0] / 255 for scan in synthetic.render(spec, people, opened.study.data.image_size)]
    pictures = np.stack([np.round(255 * np.clip(change(x, rng), 0, 1)) / 255 for x in seen]).astype(np.float32)
    found = opened.predict(pictures[:, None])
    labels = people.labels["lesion"] ^ (rng.random(len(pictures)) < wrong)
    groups = {"sex": people.columns["sex"]}
    return NewScans(people.patient_ids, found.inputs, found.probability, found.uncalibrated, found.strangeness, labels, groups)


def phantoms(out: Path, looks: int) -> dict[str, Any]:
    """Drift and number of patients -> shares of looks by level, what they point at, and the mean of what they measure."""
    opened = released(HERE / "study.yaml", out / "phantoms")
    rows: dict[str, Any] = {}
    for name in DRIFTS:
        for patients in (30, 100):
            count = looks if name == "none" else max(20, looks // 10)
            found = [judged(compare(opened, new_scans(opened, name, patients, seed))) for seed in range(count)]
            rows[f"{name}/{patients}"] = summary(found)
            print(name, patients, rows[f"{name}/{patients}"], flush=True)
    return rows


def summary(found: list[list[Drift]]) -> dict[str, Any]:
    """Of many looks."""
    levels = [worst([one.level for one in each]) for each in found]
    alarms, acts = sum(level != "none" for level in levels), levels.count("act")
    limits = binomtest(alarms, len(levels)).proportion_ci(method="exact")
    measured = {}
    for what, name in SHOWN:
        mine = [one for each in found for one in each if (one.what, one.name, one.group) == (what, name, None)]
        if mine:
            measured[f"{what} {name}"] = {
                "before": round(float(np.mean([one.before for one in mine])), 4),
                "after": round(float(np.mean([one.after for one in mine])), 4),
                "found": round(float(np.mean([one.level != "none" for one in mine])), 3),
            }
    return {"looks": len(levels), "alarms": alarms, "acts": acts, "low": round(limits.low, 4), "high": round(limits.high, 4),
            "measured": measured}


def real(out: Path, data: Path) -> dict[str, Any]:
    """The held-out hospital of the chest X-rays: level, findings and performance, as it is and with planted drifts."""
    opened = released(ROOT / "configs" / "chest_x_ray_sites.yaml", out / "chest", f"data.root={data.resolve()}",
                      "evaluation.groups=[sex,age]", "evaluation.age_bands=[60]")
    held_out = opened.study.hospitals.held_out[0]
    rows = {}
    for name in ("none", "brighter by 0.05", "blur, 0.7 pixels", "noise, deviation 0.03"):
        folder = out / "chest" / name.replace(" ", "_").replace(",", "")
        manifest = real_manifest(data, held_out, folder, DRIFTS[name][0])
        tree = look(opened, manifest, folder / "monitoring")
        rows[name] = {
            "level": tree["level"], "patients": tree["n_patients"], "scans": tree["n_scans"], "comparisons": len(tree["drift"]),
            "flagged": tree["flagged"],
            "found": [f"{one['what']} {one['name']}" for one in tree["drift"] if one["level"] != "none"],
            "performance": {one["name"]: {key: one[key] for key in ("before", "after", "interval", "adjusted", "least")}
                            for one in tree["drift"] if one["what"] == "performance" and one["group"] is None},
        }
        print("chest X-rays of", held_out, name, rows[name], flush=True)
    return rows


def real_manifest(data: Path, site: str, folder: Path, change: Change) -> Path:
    """The site's rows, with its pictures changed (after scaling to 0..1)."""
    source, rng = data / "cxr_multisite", np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["site"] == site]
    for number, row in enumerate(rows):
        with Image.open(source / row["image"]) as picture:
            x = np.clip(change(np.asarray(picture.convert("L")) / 255, rng), 0, 1)
        Image.fromarray(np.round(255 * x).astype(np.uint8)).save(folder / f"{number}.png")
        row |= {"image": f"{number}.png", "mask": ""}
    with (folder / "new.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "new.csv"


def table(rows: dict[str, Any]) -> str:
    """The phantoms' looks as Markdown."""
    head = ("planted", "patients", "looks", "watch or act (95 % interval)", "act", "at release, now (share of looks that say so)")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    for key, one in rows.items():
        name, patients = key.rsplit("/", 1)
        moved = "; ".join(f"{what} {m['before']:.3f}, {m['after']:.3f} ({m['found']:.2f})" for what, m in one["measured"].items())
        alarms = f"{one['alarms']} ({one['low']:.3f} to {one['high']:.3f})"
        lines.append(f"| {name} | {patients} | {one['looks']} | {alarms} | {one['acts']} | {moved} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "runs")
    parser.add_argument("--looks", type=int, default=200)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    (HERE / "results").mkdir(exist_ok=True)
    results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "phantoms": phantoms(options.out, options.looks)}
    (HERE / "results" / "table.md").write_text(table(results["phantoms"]))
    if options.data:
        results["chest_x_rays"] = real(options.out, options.data)
    (HERE / "results" / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
