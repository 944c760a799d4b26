"""What does each fairness lever do to the worst group, the worst hospital and the mean, at which epsilon?

    python experiments/fairness/run.py --data FOLDER_OF_THE_SHARED_IMAGES [--seeds 3] [--work FOLDER] [--only DATA]

Each row is a `fedimaging simulate` of phantoms.yaml or chest_x_ray.yaml with one thing changed; a seed changes the generated
patients (phantoms) or the split into train, validation and test (chest X-rays), and initial weights and noise with it. Writes
results/DATA.json and results/DATA.md after every row. A killed run goes on where it was.
"""

import argparse
import json
import math
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import phantoms

from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.runs.sweep_summary import t_interval
from fedimaging.study.load import load

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENTS = 2000
EPSILONS = ("3", "8", "inf")
BALANCED = {  # public numbers: the share by how the phantoms are drawn, and of men in the collection's own description
    "phantoms": "training.balance={column: group, shares: {women_over_70: 0.12, others: 0.88}}",
    "chest_x_ray": "training.balance={column: sex, shares: {F: 0.33, M: 0.67}}",
}
Q_FAIR, MINIMAX = "federation.fairness={kind: q_fair, q: 1.0}", "federation.fairness={kind: minimax, step: 1.0}"


def rows(data: str) -> dict[str, tuple[str, ...]]:
    """Name -> what is changed."""
    one = {"public weights": (), "q-fair, q = 1": (Q_FAIR,), "minimax, step 1": (MINIMAX,), "balanced groups": (BALANCED[data],)}
    if data != "phantoms":
        return one
    small = "training.batch_size=40"  # all of a hospital at every step cannot draw a group more often, only the others less
    return one | {"batches of 40": (small,), "batches of 40, balanced groups": (small, BALANCED[data])}


def run(data: str, root: Path, changed: tuple[str, ...], epsilon: str, seed: int, out: Path) -> dict[str, Any]:
    """The report of one run."""
    if not (out / "report.json").exists():
        keys = [f"data.root={root}", f"seed={seed}", f"data.split.seed={seed}", *changed]
        keys += ["privacy=null"] if epsilon == "inf" else [f"privacy.target_epsilon={epsilon}"]
        study = load(HERE / f"{data}.yaml", keys)
        with LiveView(study.federation.rounds, quiet=True) as view:
            simulate(study, out, Options(report=False, workers=1, resume=(out / "study.yaml").exists()), view)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def figures(data: str, report: dict[str, Any]) -> dict[str, float]:
    """Worst group and worst hospital with at least 5 test patients, mean over those hospitals, and all test patients together.

    AUROC; for hospitals of the chest X-rays, where some test one class only, the Brier score, which is always defined.
    """
    column = "group" if data == "phantoms" else "sex"
    metric = "auroc" if data == "phantoms" else "brier"
    groups = [table["auroc"]["value"] for name, table in report["groups"][column].items()
              if name not in ("not stated", "too few") and table["auroc"]["value"] is not None]
    sites = [site["test"][metric]["value"] for site in report["sites"].values()
             if site["test_patients"] >= 5 and site["test"][metric]["value"] is not None]
    spent = [site["privacy"]["epsilon"] for site in report["sites"].values() if site["privacy"]]
    return {
        "worst group, AUROC": min(groups), f"worst hospital, {metric}": max(sites) if metric == "brier" else min(sites),
        f"mean over hospitals, {metric}": mean(sites), "all test patients, AUROC": report["test"]["auroc"]["value"],
        "epsilon": max(spent, default=math.inf),
    }


def interval(numbers: list[float], difference: bool) -> str:
    """Mean and its 95 % interval over seeds, within what is possible."""
    low, high = t_interval(numbers, (-1.0, 1.0) if difference else (0.0, 1.0))
    sign = "+" if difference else ""
    return f"{mean(numbers):{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """One table a budget: the first row as it is, the others as differences from it, seed by seed."""
    lines: list[str] = []
    for epsilon in EPSILONS:
        names = [name for name in next(iter(found.values()))[epsilon][0] if name != "epsilon"]
        lines += ["", f"ε = {'∞' if epsilon == 'inf' else epsilon}", ""]
        lines += [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        first = next(iter(found.values()))[epsilon]
        for row, by_epsilon in found.items():
            seeds = by_epsilon[epsilon]
            values = {n: [s[n] - (0 if seeds is first else f[n]) for s, f in zip(seeds, first, strict=True)] for n in names}
            lines.append(f"| {row} | {' | '.join(interval(values[n], seeds is not first) for n in names)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the rows and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("sweeps") / "fairness")
    parser.add_argument("--only", choices=list(BALANCED))
    given = parser.parse_args()
    work, shared = given.work.resolve(), given.data.resolve()
    os.chdir(ROOT)  # the studies name the file of features from here
    for data in [given.only] if given.only else list(BALANCED):
        began, found = time.monotonic(), {}
        roots = [shared if data == "chest_x_ray" else phantoms.write(work / f"phantoms_{seed}", patients=PATIENTS, seed=seed)
                 for seed in range(given.seeds)]
        for place, (row, changed) in enumerate(rows(data).items()):
            found[row] = {e: [figures(data, run(data, roots[seed], changed, e, seed, work / data / f"{place}_{e}_{seed}"))
                              for seed in range(given.seeds)] for e in EPSILONS}
            write(data, found, given.seeds, time.monotonic() - began)
        print((HERE / "results" / f"{data}.md").read_text(encoding="utf-8"))


def write(data: str, found: dict[str, dict[str, list[dict[str, float]]]], seeds: int, seconds: float) -> None:
    """The rows so far."""
    said = (
        f"{seeds} seeds, mean and 95 % interval over seeds (Student's t); below the first row, differences from it seed by seed. "
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, "
        f"{seconds:.0f} s."
    )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{data}.md").write_text(f"{table(found).strip()}\n\n{said}\n", encoding="utf-8")
    plain = json.dumps(found, indent=1).replace("Infinity", "null")
    (HERE / "results" / f"{data}.json").write_text(plain + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
