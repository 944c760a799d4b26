"""What a federation costs over a bare training loop: whole-process wall time, medians of alternating runs, and ratios.

    python experiments/round_cost/run.py --data FOLDER [--case a b c] [--repeats 3]
    python experiments/round_cost/run.py --many            200 and 1,000 hospitals: memory and completion
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SMALL = {"init_features": 16, "growth_rate": 8, "block_config": [2, 2, 2]}
LARGE = {"init_features": 64, "growth_rate": 32, "block_config": [6, 12, 24, 16]}
CASES: dict[str, dict[str, Any]] = {
    "a": {"hospitals": 8, "rounds": 10, "batch": 64, "network": SMALL, "size": 28, "source": "pneumonia"},
    "b": {"hospitals": 200, "rounds": 5, "batch": 16, "network": SMALL, "size": 28, "source": "pneumonia"},
    "c": {"hospitals": 8, "rounds": 2, "batch": 20, "network": LARGE, "size": 64, "source": "phantoms", "patients": 800},
}
LEARNING_RATE = 0.01


def study(case: dict[str, Any], data: Path) -> dict[str, Any]:
    """The case as a study: no privacy, evaluation at the end only."""
    size = [case["size"], case["size"]]
    if case["source"] == "pneumonia":
        source: dict[str, Any] = {"source": "medmnist", "path": "pneumoniamnist.npz", "root": str(data), "image_size": size}
    else:
        phantoms = {"patients": case["patients"] * 5 // 4, "scans_per_patient": [1, 1], "hospitals": 1}
        source = {"source": "phantoms", "image_size": size, "phantoms": phantoms, "split": {"test": 0.2}}
    return {
        "name": "round-cost", "seed": 0, "data": source,
        "task": {"kind": "binary", "label": "label" if case["source"] == "pneumonia" else "lesion"},
        "hospitals": {"by": "iid", "count": case["hospitals"]},
        "model": {"name": "densenet", "options": case["network"]},
        "training": {
            "optimizer": "sgd", "learning_rate": LEARNING_RATE, "momentum": 0.9, "batch_size": case["batch"], "local_epochs": 1,
        },
        "privacy": None, "federation": {"rounds": case["rounds"]}, "evaluation": {"every": 0, "resamples": 200},
    }


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a whole process; its output is shown only if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.perf_counter() - began


def measure(name: str, data: Path, repeats: int, folder: Path) -> dict[str, Any]:
    """One case: federation and both bare loops in turn, after one federation that fills the image store."""
    case = CASES[name]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(study(case, data)))  # JSON is YAML
    environment = {**os.environ, "FEDIMAGING_CACHE": str(folder / "store")}
    federation = [sys.executable, "-m", "fedimaging.cli", "simulate", str(path), "--no-report", "-q"]
    seconds([*federation, "--out", str(folder / f"{name}-first")], environment)
    bare_case = prepare_bare(case, folder, folder / f"{name}-first", name)
    bare = [sys.executable, str(HERE / "bare.py"), "--case", str(bare_case)]
    times: dict[str, list[float]] = {"federation": [], "bare, all threads": [], "bare, a process a core": []}
    for turn in range(repeats):
        times["federation"].append(seconds([*federation, "--out", str(folder / f"{name}-{turn}")], environment))
        times["bare, all threads"].append(seconds([*bare, "--processes", "1"], environment))
        times["bare, a process a core"].append(seconds([*bare, "--processes", str(os.cpu_count())], environment))
        print(name, {key: round(values[-1], 1) for key, values in times.items()}, flush=True)
    medians = {key: statistics.median(values) for key, values in times.items()}
    best = min(medians["bare, all threads"], medians["bare, a process a core"])
    report = json.loads((folder / f"{name}-0" / "report.json").read_text())
    return {"case": name, "times": times, "medians": medians, "ratio": medians["federation"] / best, "workers": report["workers"]}


def prepare_bare(case: dict[str, Any], folder: Path, run: Path, name: str) -> Path:
    """What the bare loop needs: the same arrays, the same rows of each hospital, the same network."""
    import numpy as np

    from fedimaging.data.dataset import Dataset
    from fedimaging.models.spec import ModelSpec
    from fedimaging.models.zoo import build_model

    facts = json.loads((run / "federation.json").read_text())
    dataset = Dataset.open(facts["store"])
    pixels = json.loads((Path(facts["store"]) / "table.json").read_text())["pixels"]
    np.save(folder / f"{name}-labels.npy", np.asarray(dataset.labels))
    network = build_model(
        ModelSpec(name="densenet", options=case["network"]), in_channels=1, out_channels=2,
        image_size=(case["size"], case["size"]), seed=0,
    )
    groups = {m.num_channels: m.num_groups for m in network.modules() if type(m).__name__ == "GroupNorm"}
    path = folder / f"{name}-bare.json"
    path.write_text(json.dumps({
        **case, "learning_rate": LEARNING_RATE, "groups": groups,
        "images": str(Path(facts["store"]).parent / pixels / "images.npy"),
        "labels": str(folder / f"{name}-labels.npy"), "federation": str(run / "federation.npz"),
    }))
    return path


def many(data: Path, folder: Path) -> None:
    """200 hospitals with a 30 MB network (and 50, to compare memory), then 1,000 hospitals with the small one."""
    environment = {**os.environ, "FEDIMAGING_CACHE": str(folder / "store")}
    wide = {"init_features": 64, "growth_rate": 32, "block_config": [6, 12, 24, 16]}
    for hospitals, network, rounds in ((50, wide, 1), (200, wide, 1), (1000, SMALL, 2)):
        case = {"hospitals": hospitals, "rounds": rounds, "batch": 16, "network": network, "size": 32, "source": "pneumonia"}
        path = folder / f"many-{hospitals}.json"
        path.write_text(json.dumps(study(case, data)))
        out = folder / f"many-{hospitals}"
        command = [sys.executable, "-m", "fedimaging.cli", "simulate", str(path), "--no-report", "-q", "--workers", "1"]
        command += ["--out", str(out)]
        took = seconds(command, environment)
        report = json.loads((out / "report.json").read_text())
        megabytes = report["bytes_per_round_per_site"] / 2 / 2**20
        print(
            f"{hospitals} hospitals, {megabytes:.1f} MB of weights, {rounds} round(s): {took:.0f} s, "
            f"peak {report['peak_memory_mb']:.0f} MB, hospitals in the last round: {len(report['rounds'][-1]['sites'])}",
            flush=True,
        )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--case", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--many", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.many:
            many(arguments.data.resolve(), folder)
            return
        rows = [measure(case, arguments.data.resolve(), arguments.repeats, folder) for case in arguments.case]
    print(f"\n{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("| case | federation | workers | bare, all threads | bare, a process a core | ratio to the better |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        m = row["medians"]
        print(
            f"| {row['case']} | {m['federation']:.1f} s | {row['workers']} | {m['bare, all threads']:.1f} s | "
            f"{m['bare, a process a core']:.1f} s | {row['ratio']:.2f} |"
        )


if __name__ == "__main__":
    main()
