"""What does the number of hospitals do to accuracy, with and without privacy?

    python experiments/sites_vs_accuracy/run.py --data FOLDER_WITH_PNEUMONIAMNIST [--seeds 3] [--sites 2,5,10,20,50]

Two questions, a sweep for each. `split`: the same patients (PneumoniaMNIST) at ever more hospitals, so each hospital has fewer
and needs more noise for each of them. `join`: ever more hospitals of 100 generated patients each, tested on the 30 % of patients
that each sets aside. Beside the federation stands what a hospital reaches alone (without privacy), in the mean over hospitals.
Writes results/table.md and results/results.json after every row. A killed run goes on where it was.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECIPE = "configs/recipes/small_hospitals.yaml"
PER_HOSPITAL = 100
_MEAN = ", mean over hospitals"


def sweep(out: Path, epsilon: str, seeds: int, jobs: str, overrides: list[str]) -> list[dict]:
    """Run one sweep; the cells of its summary."""
    command = [sys.executable, "-m", "fedimaging.cli", "sweep", RECIPE, "--epsilon", epsilon, "--seeds", str(seeds), "--quiet",
               "--jobs", jobs, "--out", str(out), "-o", "evaluation.every=0", "-o", "federation.minimum_replies=2"]  # fmt: skip
    for override in overrides:
        command += ["-o", override]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))["cells"]


def split(sites: int, data: str) -> list[str]:
    """The same patients at so many hospitals."""
    return [f"data.root={data}", f"hospitals={{by: iid, count: {sites}, seed: 0}}"]


def join(sites: int, data: str) -> list[str]:
    """So many hospitals of 100 patients."""
    patients = PER_HOSPITAL * sites
    return [
        f"name=join-{sites}",
        "data={source: phantoms, image_size: [28, 28], channels: 1, split: {test: 0.3, validation: 0.0, seed: 0}, phantoms: "
        f"{{patients: {patients}, scans_per_patient: [1, 1], hospitals: {sites}, seed: 7}}}}",
        "task={kind: binary, label: lesion}", "hospitals={by: column, column: site}", "privacy.delta=1e-3",
    ]


def told(cells: list[dict]) -> dict[str, dict]:
    """Of each budget the federation's result on all test patients and in the mean over hospitals (as which alone a hospital of
    its own can be measured); the mean over hospitals of each alone; pooled data."""
    found: dict[str, dict] = {}
    for cell in cells:
        endless = cell["epsilon"] in (None, "inf") or float(cell["epsilon"]) == float("inf")
        if cell["arm"] == "federated":
            budget = "no DP" if endless else f"ε = {float(cell['epsilon']):g}"
            found |= {budget: cell["test"], f"{budget}{_MEAN}": cell["site_mean"]}
        elif cell["arm"] == "local_only":
            found[f"each alone, no DP{_MEAN}"] = cell["site_mean"]
        elif cell["arm"] == "pooled":
            found["pooled, no DP"] = cell["test"]
    return found


def cell_text(estimate: dict | None) -> str:
    """Mean and its interval over seeds."""
    if not estimate:
        return "–"
    spread = "" if estimate["low"] is None else f" ({estimate['low']:.3f}–{estimate['high']:.3f})"
    return f"{estimate['mean']:.3f}{spread}"


def table(name: str, found: dict[int, dict[str, dict]]) -> list[str]:
    """One table: a row for each number of hospitals."""
    columns = sorted({key for row in found.values() for key in row}, key=_order)
    lines = [f"## {name}", "", f"| hospitals | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {sites} | {' | '.join(cell_text(row.get(key)) for key in columns)} |" for sites, row in found.items()]
    return [*lines, ""]


def _order(column: str) -> tuple[bool, int, float, str]:
    """All test patients before means over hospitals; budgets rise."""
    kind = next(place for place, start in enumerate(("ε", "no DP", "")) if column.startswith(start))
    budget = float(column.removesuffix(_MEAN).split("=")[1]) if kind == 0 else 0.0
    return column.endswith(_MEAN), kind, budget, column


QUESTIONS: dict[str, tuple[Callable[[int, str], list[str]], str]] = {
    "split": (split, "The same 4,708 training patients (PneumoniaMNIST) at more and more hospitals, AUROC"),
    "join": (join, f"More and more hospitals of {PER_HOSPITAL} generated patients each, AUROC"),
}


def write(results: dict[str, dict[int, dict[str, dict]]], seeds: int) -> str:
    """The tables of the rows so far."""
    lines = [line for name, (_, words) in QUESTIONS.items() if name in results for line in table(words, results[name])]
    lines.append(
        f"{seeds} seeds, mean and 95 % interval over seeds, {time.strftime('%Y-%m-%d')}, {platform.machine()}, Python "
        f"{platform.python_version()}, torch {version('torch')}."
    )
    text = "\n".join(lines) + "\n"
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "table.md").write_text(text, encoding="utf-8")
    (HERE / "results" / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return text


def main() -> None:
    """Sweeps, tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--sites", default="2,5,10,20,50")
    parser.add_argument("--epsilon", default="1,8,inf")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", default="auto")
    parser.add_argument("--work", type=Path, default=Path("sweeps") / "sites_vs_accuracy")
    given = parser.parse_args()
    data, results, text = str(Path(given.data).resolve()), dict[str, dict[int, dict]](), ""
    for sites in map(int, given.sites.split(",")):
        for name, (made, _) in QUESTIONS.items():
            out = given.work.resolve() / f"{name}_{sites}"
            found = told(sweep(out, given.epsilon, given.seeds, given.jobs, made(sites, data)))
            results.setdefault(name, {})[sites] = found
            print(name, sites, {key: round(one["mean"], 4) for key, one in found.items() if one}, flush=True)
            text = write(results, given.seeds)
    print(text)


if __name__ == "__main__":
    main()
