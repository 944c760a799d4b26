"""What does a unit of privacy cost, in accuracy, in fairness, and over hospitals? Four data sets, one command.

    python experiments/privacy_budgets/run.py --data FOLDER_OF_THE_SHARED_IMAGES [--only pneumonia …] [--seeds 3] [--jobs 2]

Each data set is one `fedimaging sweep` (its page: sweeps/privacy_budgets/NAME/sweep.html); the tables come together in
results/table.md, the cells in results/NAME.json. A killed run goes on where it was.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECIPE = "configs/recipes/small_hospitals.yaml"
TUNED = "learning rate and noise limit on generated patients (experiments/levers); nothing on these test patients"

SWEEPS: dict[str, dict] = {
    "pneumonia": {"study": RECIPE, "epsilon": "0.5,1,3,8,inf", "seeds": 5, "over": ["evaluation.every=0"], "tuned": TUNED},
    "chest_x_ray_sites": {
        "study": RECIPE, "epsilon": "1,3,8,inf", "seeds": 3, "tuned": TUNED,
        "over": [
            "name=chest-x-ray-sites",
            "data={source: manifest, path: cxr_multisite/metadata.csv, root: DATA, image_size: [28, 28], channels: 1, "
            "intensity: percentile, split: {test: 0.3, validation: 0.0, seed: 0}}",
            "task={kind: binary, label: ap_view, class_names: [PA, AP]}",
            "hospitals={by: column, column: site, held_out: [GB]}", "privacy.delta=1e-3", "evaluation.every=0",
            "evaluation.groups=[sex, age]",
        ],
    },
    "hippocampus": {
        "study": "configs/hippocampus_unet3d.yaml", "epsilon": "8,30,100,inf", "seeds": 3,
        "tuned": "not tuned: the settings of experiments/new_data/lungs.yaml, with and without privacy",
        "over": [  # 2 mm voxels and a small network: 11 patients at a hospital bear no more under noise
            "data.image_size=[20, 28, 20]", "data.spacing_mm=[2.0, 2.0, 2.0]",
            "model={name: unet, options: {channels: [8, 16, 32], num_res_units: 1}}",
            "training={optimizer: adam, learning_rate: 0.005, batch_size: 8, local_steps: 4}",
            "privacy={target_epsilon: 8, delta: 1.0e-2}", "federation.rounds=15", "evaluation.every=0",
        ],
    },
    "phantoms_10000": {
        "study": RECIPE, "epsilon": "0.5,1,3,8,inf", "seeds": 3, "tuned": TUNED,
        "over": [
            "name=phantoms-10000",
            "data={source: phantoms, image_size: [28, 28], channels: 1, phantoms: {patients: 10000, scans_per_patient: [1, 4], "
            "hospitals: 8, seed: 5}}",
            "task={kind: binary, label: lesion}", "hospitals={by: column, column: site}", "evaluation.every=0",
            "evaluation.groups=[sex, age]",
        ],
    },
}


def run_sweep(name: str, given: argparse.Namespace) -> float:
    """One data set; the seconds it took."""
    spec, out, began = SWEEPS[name], given.work.resolve() / name, time.monotonic()
    command = [
        sys.executable, "-m", "fedimaging.cli", "sweep", spec["study"], "--epsilon", spec["epsilon"], "--seeds",
        str(given.seeds or spec["seeds"]), "--jobs", str(given.jobs), "--out", str(out), "--tuned-on", spec["tuned"], "--quiet",
    ]
    overrides = [text.replace("DATA", given.data) for text in spec["over"]]
    if not any(text.startswith("data=") for text in overrides):
        overrides.append(f"data.root={given.data}")
    for override in overrides:
        command += ["-o", override]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    """Run the sweeps and gather their tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", nargs="*", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--seeds", type=int, help="instead of each sweep's own number")
    parser.add_argument("--jobs", default="auto")
    parser.add_argument("--work", type=Path, default=Path("sweeps") / "privacy_budgets")
    given = parser.parse_args()
    given.data = str(Path(given.data).resolve())
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    parts, total = [], 0.0
    for name in given.only:
        seconds = run_sweep(name, given)
        total += seconds
        out = given.work.resolve() / name
        shutil.copy(out / "summary.json", results / f"{name}.json")
        table = (out / "table.md").read_text(encoding="utf-8")
        parts.append(f"## {name}\n\n{table.strip()}\n\n{seconds:.0f} s in this call.\n")
        print(parts[-1], flush=True)
    said = (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, MONAI "
        f"{version('monai')}, flwr {version('flwr')}; {total:.0f} s in all."
    )
    (results / "table.md").write_text("\n".join([*parts, said]) + "\n", encoding="utf-8")
    print(said)


if __name__ == "__main__":
    main()
