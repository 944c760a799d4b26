"""What does each part of the recipe give, at which epsilon?

    python experiments/levers/run.py --data FOLDER_WITH_PNEUMONIAMNIST [--epsilon 1,3,8] [--seeds 3] [--only ROW …]

Each row is `fedimaging sweep` over PneumoniaMNIST at five hospitals (configs/recipes/small_hospitals.yaml) with something
changed; the first row changes nothing. Before them learning rate and noise limit are chosen on generated patients (proxy.yaml).
Writes results/table.md and results/results.json after every row. A killed run goes on where it was. With `--only` (rows, or
`generated`) the other rows stay as results.json has them.
"""

import argparse
import csv
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECIPE = ROOT / "configs" / "recipes" / "small_hospitals.yaml"
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, 97.5 %, for so many seeds

PLAIN = (
    "model={name: small_cnn}", "training={optimizer: sgd, learning_rate: 0.5, batch_size: 256, local_epochs: 1}",
    "federation={algorithm: fedavg, rounds: 15, weights: public_patients}", "evaluation.every=0",
)
ROWS: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "no noise limit, learning rate 1": ("federation.noise_limit=null", "training.learning_rate=1.0"),
    "no noise limit, learning rate 3": ("federation.noise_limit=null",),
    "half the noise limit": ("federation.noise_limit=0.0035",),
    "twice the noise limit": ("federation.noise_limit=0.014",),
    "features not whitened (802 numbers), no noise limit": ("model={name: wavelet_net}", "federation.noise_limit=null"),
    "no server momentum (learning rate and limit times 10)": (
        "federation.algorithm=fedavg", "training.learning_rate=30.0", "federation.noise_limit=0.07"),
    "last model instead of the mean of 30": ("federation.average_last=1",),
    "running mean (decay 0.95) instead": ("federation.average_last=1", "federation.model_ema=0.95"),
    "clip norm 0.3": ("privacy.clip_norm=0.3",),
    "clip norm 3": ("privacy.clip_norm=3.0",),
    "batches of 256 of each hospital": ("training.batch_size=256",),
    "weights by inverse noise": ("federation.weights=inverse_noise",),
    "20 rounds of 5 local steps": ("federation.rounds=20", "training.local_steps=5", "federation.average_last=6"),
    "30 rounds": ("federation.rounds=30", "federation.average_last=9"),
    "300 rounds": ("federation.rounds=300", "federation.average_last=90"),
    "ideal secure sum (simulation only)": ("privacy.secure_sum=ideal", "federation.minimum_replies=5"),
    "plain DP-SGD: small CNN, FedAvg, 15 epochs of batches of 256": PLAIN,
    "the same CNN, weights standardised": (*PLAIN, "model={name: small_cnn, weight_standardisation: true}"),
    "the same CNN, pretrained on phantoms": (*PLAIN, "model={name: small_cnn, weights: PRETRAINED}"),
    "the same CNN, pretrained, head alone trained": (*PLAIN, "model={name: small_cnn, weights: PRETRAINED, trainable: head}"),
    "the same CNN, 2 views of each patient inside the clip": (
        *PLAIN, "privacy.views_per_patient=2", "training.augment={shift: 0.1, rotate_degrees: 10, scale: 0.1}"),
}


def sweep(study: Path, out: Path, epsilon: str, seeds: int, jobs: str, overrides: tuple[str, ...]) -> None:
    """Run one sweep into `out`."""
    command = [sys.executable, "-m", "fedimaging.cli", "sweep", str(study), "--epsilon", epsilon, "--seeds", str(seeds),
               "--jobs", jobs, "--no-baselines", "--quiet", "--out", str(out)]
    for override in overrides:
        command += ["-o", override]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def values(out: Path, metric: str = "auroc") -> dict[str, dict[int, float]]:
    """Epsilon -> seed -> the federation's metric on all test patients, from results.csv."""
    found: dict[str, dict[int, float]] = {}
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["arm"], row["scope"], row["metric"]) == ("federated", "test", metric):
                found.setdefault(row["epsilon"], {})[int(row["seed"])] = float(row["value"])
    return found


def interval(numbers: list[float]) -> str:
    """Mean and half the 95 % interval over seeds."""
    if len(numbers) < 2:
        return f"{mean(numbers):.3f}"
    return f"{mean(numbers):.3f} ± {_T95[len(numbers)] * stdev(numbers) / len(numbers) ** 0.5:.3f}"


def pretrained(folder: Path) -> Path:
    """The small CNN trained, without privacy, on generated patients gathered in one place."""
    run = folder / "pretraining"
    if not (run / "report.json").exists():
        subprocess.run([
            sys.executable, "-m", "fedimaging.cli", "simulate", str(HERE / "proxy.yaml"), "--out", str(run), "--resume", "-q",
            "--no-report", "--workers", "1", "-o", "privacy=null", "-o", "model={name: small_cnn}",
            "-o", "data.phantoms.hospitals=1",
            "-o", "training={optimizer: adam, learning_rate: 0.003, batch_size: 64, local_epochs: 1}",
            "-o", "federation={algorithm: fedavg, rounds: 10}",
        ], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return run / "weights.safetensors"


def choose_on_generated(folder: Path, epsilon: str, jobs: str) -> list[str]:
    """The proxy's tables: AUROC on generated patients at each epsilon, for learning rates without a limit, then for limits."""
    lines = []
    for name, out, overrides in (
        ("training.learning_rate", "rates", ("federation.noise_limit=null", "training.learning_rate=0.3,0.5,0.7,1,1.5,2,3,5")),
        ("federation.noise_limit", "limits", ("federation.noise_limit=0.0035,0.005,0.007,0.01,0.014",)),
    ):
        sweep(HERE / "proxy.yaml", folder / out, epsilon, 2, jobs, overrides)
        lines += [*_by_key(folder / out, name, epsilon.split(",")), ""]
    return lines


def _by_key(out: Path, key: str, budgets: list[str]) -> list[str]:
    found: dict[tuple[str, str], list[float]] = {}
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["arm"], row["scope"], row["metric"]) == ("federated", "test", "auroc"):
                found.setdefault((row[key], row["epsilon"]), []).append(float(row["value"]))
    values = sorted({value for value, _ in found}, key=float)
    lines = [f"| {key} | {' | '.join(f'ε = {one}' for one in budgets)} | mean |", "|---" * (len(budgets) + 2) + "|"]
    for value in values:
        cells = [mean(next(v for (r, e), v in found.items() if r == value and float(e) == float(one))) for one in budgets]
        lines.append(f"| {value} | {' | '.join(f'{cell:.4f}' for cell in cells)} | {mean(cells):.4f} |")
    return lines


def main() -> None:
    """Run the rows that were asked for and write the table of all that are there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--epsilon", default="1,3,8")
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(_T95))
    parser.add_argument("--only", nargs="*", default=["generated", *ROWS], choices=["generated", *ROWS], metavar="ROW")
    parser.add_argument("--jobs", default="auto")
    parser.add_argument("--work", type=Path, default=Path("sweeps") / "levers")
    given = parser.parse_args()
    folder, data, results = given.work.resolve(), str(Path(given.data).resolve()), HERE / "results" / "results.json"
    found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {"generated": [], "rows": {}, "made": {}}
    for name in given.only:
        began = time.monotonic()
        if name == "generated":
            found["generated"] = choose_on_generated(folder, given.epsilon, given.jobs)
        else:
            changed = tuple(o.replace("PRETRAINED", str(pretrained(folder))) if "PRETRAINED" in o else o for o in ROWS[name])
            out = folder / f"{list(ROWS).index(name):02d}"
            sweep(RECIPE, out, given.epsilon, given.seeds, given.jobs, (f"data.root={data}", *changed))
            found["rows"][name] = values(out)
            print(name, {e: round(mean(v.values()), 4) for e, v in found["rows"][name].items()}, flush=True)
        found["made"][name] = {
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "python": platform.python_version(),
            "torch": version("torch"), "seconds": round(time.monotonic() - began),
        }
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (HERE / "results" / "table.md").write_text(table(found, given.epsilon.split(",")), encoding="utf-8")
    print((HERE / "results" / "table.md").read_text(encoding="utf-8"))


def table(found: dict, budgets: list[str]) -> str:
    """The tables of what was run so far, in the order of ROWS."""
    lines = [f"| | {' | '.join(f'ε = {one}' for one in budgets)} |", "|---" * (len(budgets) + 1) + "|"]
    for name in (name for name in ROWS if name in found["rows"]):
        by_number = {float(epsilon): seeds for epsilon, seeds in found["rows"][name].items()}
        cells = [interval([*v.values()]) if (v := by_number.get(float(one))) else "–" for one in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds = sorted({len(one) for row in found["rows"].values() for one in row.values()})
    dates = sorted({one["date"] for one in found["made"].values()})
    said = f"{', '.join(map(str, seeds))} seeds, mean and 95 % interval over seeds, {' and '.join(dates)}"
    tables = ["Generated patients (AUROC, 2 seeds):", "", *found["generated"], "PneumoniaMNIST (AUROC):", "", *lines]
    return "\n".join([*tables, "", f"{said}; of each row results.json has machine, versions, seconds."]) + "\n"


if __name__ == "__main__":
    main()
