"""How long does a sweep of n runs take on two workers, beside n times one run alone?

    python experiments/sweep_time/run.py [--study configs/recipes/small_hospitals.yaml] [-o KEY=VALUE …] [--seeds 4] [--times 3]

A run alone is a fresh `fedimaging simulate --no-report`, its start included: with the workers that it chooses, and with one. The
sweep is `fedimaging sweep --epsilon 1,3,8 --no-baselines --jobs 2`, its start and its page included. In turns, after one run that
fills the image store and measures the machine; medians. Writes results/NAME.json and prints the ratios.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUDGETS = "1,3,8"


def seconds_of(*words: str) -> float:
    """Wall time of a command. Error: CalledProcessError."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "fedimaging.cli", *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def measure(study: str, overrides: list[str], seeds: int, times: int, work: Path) -> dict[str, list[float]]:
    """Seconds of each command, in turns."""
    changed = [word for override in overrides for word in ("-o", override)]
    found: dict[str, list[float]] = {"alone": [], "alone, one worker": [], "sweep": []}

    def alone(workers: str) -> float:
        out = work / "alone"
        shutil.rmtree(out, ignore_errors=True)
        return seconds_of("simulate", study, *changed, "--out", str(out), "--no-report", "--quiet", "--workers", workers)

    alone("auto"), alone("1")
    for _ in range(times):
        found["alone"].append(alone("auto"))
        found["alone, one worker"].append(alone("1"))
        shutil.rmtree(work / "sweep", ignore_errors=True)
        found["sweep"].append(seconds_of(
            "sweep", study, *changed, "--epsilon", BUDGETS, "--seeds", str(seeds), "--no-baselines", "--jobs", "2", "--quiet",
            "--out", str(work / "sweep")))  # fmt: skip
        print({name: [round(one, 1) for one in each] for name, each in found.items()}, flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--study", default="configs/recipes/small_hospitals.yaml")
    parser.add_argument("-o", dest="overrides", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(given.study, given.overrides, given.seeds, given.times, Path(work))
    runs = given.seeds * len(BUDGETS.split(","))
    middle = {name: median(each) for name, each in found.items()}
    ratios = {name: middle["sweep"] / (runs * middle[name]) for name in ("alone", "alone, one worker")}
    told = {
        "study": given.study, "runs": runs, "seconds": found, "median": middle, "sweep / (runs x one run)": ratios,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}", "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("torch", "flwr", "monai")} | {"python": platform.python_version()},
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{Path(given.study).stem}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for name, ratio in ratios.items():
        print(f"{runs} runs in {middle['sweep']:.1f} s; one run {name} {middle[name]:.1f} s: {ratio:.2f} of {runs} times that")


if __name__ == "__main__":
    main()
