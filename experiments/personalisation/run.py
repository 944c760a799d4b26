"""What does a model of its own give each hospital, over the shared one and over training alone, at which epsilon?

    python experiments/personalisation/run.py --data FOLDER_OF_THE_SHARED_IMAGES [--seeds 3] [--work FOLDER] [--only DATA]

Each row is a `fedimaging simulate` of phantoms.yaml, chest_x_ray.yaml or layers.yaml with one thing changed; the first row runs
with --baselines, for the models that hospitals train alone. A seed changes the generated patients or the split, initial weights
and noise. The CNN of layers.yaml begins as trained on other generated patients. Writes results/DATA.json and results/DATA.md
after every row. A killed run goes on where it was.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.runs.sweep_summary import t_interval
from fedimaging.study.load import load

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EPSILONS = ("3", "8", "inf")
OWN = {
    "shared": (),
    "fine-tuned, 20 steps": ("personalisation={kind: fine_tune, steps: 20, learning_rate: 1.0}",),
    "fine-tuned, 20 steps, mu 0.1": ("personalisation={kind: fine_tune, steps: 20, learning_rate: 1.0, mu: 0.1}",),
    "Ditto, 5 steps a round, mu 0.1": ("personalisation={kind: ditto, steps: 5, learning_rate: 1.0, mu: 0.1}",),
}
LAYERS = {
    "shared": (),
    "local normalisation layers": ("federation.local_parameters=norm",),
    "local head": ("federation.local_parameters=head",),
    "fine-tuned, 20 steps": ("personalisation={kind: fine_tune, steps: 20, learning_rate: 0.1}",),
}
ROWS = {"phantoms": OWN, "chest_x_ray": OWN, "layers": LAYERS}
LEAST = 5  # test patients of a hospital that is shown

Scores = dict[str, float]
"""Hospital -> the metric of the model that it would use."""


def metric_of(data: str) -> tuple[str, float]:
    """(metric, sign): AUROC; Brier for the X-rays, where hospitals test one class only, with its sign turned for gains."""
    return ("brier", -1.0) if data == "chest_x_ray" else ("auroc", 1.0)


def pretrained(work: Path) -> Path:
    """The small CNN trained, without privacy, on other generated patients, of one hospital: what anybody could publish."""
    out = work / "pretraining"
    if not (out / "weights.safetensors").exists():
        study = load(HERE / "layers.yaml", [
            "privacy=null", "data.phantoms.hospitals=1", "data.phantoms.patients=1500", "data.phantoms.seed=1000",
            "training={optimizer: adam, learning_rate: 0.003, batch_size: 64, local_epochs: 1}",
            "federation={algorithm: fedavg, rounds: 20}"])
        with LiveView(study.federation.rounds, quiet=True) as view:
            simulate(study, out, Options(report=False, workers=1, resume=(out / "study.yaml").exists()), view)
    return out / "weights.safetensors"


def run(data: str, work: Path, shared: Path, row: str, epsilon: str, seed: int, out: Path) -> dict[str, Any]:
    """The report of one run."""
    if not (out / "report.json").exists():
        keys = [f"seed={seed}", f"data.split.seed={seed}", f"evaluation.metric={metric_of(data)[0]}", *ROWS[data][row]]
        keys += [f"data.root={shared}"] if data == "chest_x_ray" else [f"data.phantoms.seed={seed}"]
        keys += [f"model={{name: small_cnn, weights: {pretrained(work)}}}"] if data == "layers" else []
        keys += ["training.momentum=0.9"] if (data, epsilon) == ("layers", "inf") else []  # nothing clips small gradients long
        keys += ["privacy=null"] if epsilon == "inf" else [f"privacy.target_epsilon={epsilon}"]
        study = load(HERE / f"{data}.yaml", keys)
        options = Options(report=False, workers=1, baselines=row == "shared", resume=(out / "study.yaml").exists())
        with LiveView(study.federation.rounds, quiet=True) as view:
            simulate(study, out, options, view)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def scores(data: str, report: dict[str, Any], block: dict[str, Any]) -> Scores:
    """Of the hospitals with enough test patients and a defined metric; `block`: hospital -> its tables."""
    metric = metric_of(data)[0]
    values = {name: block[name].get("test", block[name]).get(metric, {}).get("value") for name in block}
    tested = {name for name, site in report["sites"].items() if site["test_patients"] >= LEAST}
    return {name: value for name, value in values.items() if name in tested and value is not None}


def own_scores(data: str, report: dict[str, Any]) -> Scores:
    """Of the hospitals' own models; of the shared one where there are none."""
    of_own = (report["personalised"] or {}).get("sites")
    return scores(data, report, of_own or report["sites"])


def interval(numbers: list[float], difference: bool = False) -> str:
    """Mean and its 95 % interval over seeds, within what is possible."""
    low, high = t_interval(numbers, (-1.0, 1.0) if difference else (0.0, 1.0))
    sign = "+" if difference else ""
    return f"{mean(numbers):{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def gain(data: str, own: Scores, other: Scores) -> float:
    """The mean over hospitals of how much better the own model is."""
    both = own.keys() & other.keys()
    return mean(metric_of(data)[1] * (own[name] - other[name]) for name in both)


def lines_of(data: str, found: dict[str, dict[str, list[dict[str, Scores]]]]) -> list[str]:
    """A table a budget: mean and worst hospital, gains over the shared model and over training alone."""
    metric, sign = metric_of(data)
    lines: list[str] = []
    head = (f"mean over hospitals, {metric}", f"worst hospital, {metric}", "gain over shared", "gain over alone, same ε",
            "gain over alone, no DP", "hospitals that gain over shared")
    alone = {e: [seed["alone"] for seed in found["shared"][e]] for e in found["shared"]}
    for epsilon in EPSILONS:
        lines += ["", f"ε = {'∞' if epsilon == 'inf' else epsilon}", ""]
        lines += [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
        shared = [seed["own"] for seed in found["shared"][epsilon]]
        for row, by_epsilon in found.items():
            own = [seed["own"] for seed in by_epsilon[epsilon]]
            worst = [sign * min(sign * value for value in one.values()) for one in own]
            better = sum(sign * (one[n] - s[n]) > 0 for one, s in zip(own, shared, strict=True) for n in one.keys() & s.keys())
            of = sum(len(one.keys() & s.keys()) for one, s in zip(own, shared, strict=True))
            gains = [[gain(data, one, s) for one, s in zip(own, other, strict=True)]
                     for other in (shared, alone[epsilon], alone["inf"])]
            lines.append(
                f"| {row} | {interval([mean(one.values()) for one in own])} | {interval(worst)} | "
                + ("" if row == "shared" else interval(gains[0], True))
                + f" | {interval(gains[1], True)} | {interval(gains[2], True)} | "
                + ("" if row == "shared" else f"{better} of {of}") + " |")
    return lines


def one_run(data: str, report: dict[str, Any]) -> list[str]:
    """What one report says of each hospital: its gain with the interval over patients."""
    lines = ["| hospital | own model | gain over shared (95 %, over patients) |", "|---|---|---|"]
    metric = metric_of(data)[0]
    for name, facts in report["personalised"]["sites"].items():
        over, value = facts["over_shared"], facts["test"][metric]["value"]
        if value is not None and over["low"] is not None and report["sites"][name]["test_patients"] >= LEAST:
            lines.append(f"| {name} | {value:.3f} | {over['value']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f}) |")
    over = report["personalised"]["mean"]["over_shared"]
    if over["low"] is not None:
        lines.append(f"| mean over hospitals | | {over['value']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f}) |")
    return lines


def main() -> None:
    """Run the rows and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("sweeps") / "personalisation")
    parser.add_argument("--only", choices=list(ROWS))
    given = parser.parse_args()
    work, shared = given.work.resolve(), given.data.resolve()
    os.chdir(ROOT)
    for data in [given.only] if given.only else ROWS:
        began = time.monotonic()
        tail: list[str] = []
        found: dict[str, dict[str, list[dict[str, Scores]]]] = {}
        for place, row in enumerate(ROWS[data]):
            found[row] = {e: [] for e in EPSILONS}
            for epsilon in EPSILONS:
                for seed in range(given.seeds):
                    report = run(data, work, shared, row, epsilon, seed, work / data / f"{place}_{epsilon}_{seed}")
                    alone = report["baselines"]["local_only"]["sites"] if row == "shared" else {}
                    found[row][epsilon].append({
                        "own": own_scores(data, report), "alone": scores(data, report, alone)})
                    if epsilon == "8" and seed == 0 and row.startswith("fine") and not tail:
                        tail = ["", f"{row}, at ε = 8 of the shared model, first seed:", "", *one_run(data, report)]
            write(data, found, tail, given.seeds, time.monotonic() - began)
        print((HERE / "results" / f"{data}.md").read_text(encoding="utf-8"))


def write(data: str, found: dict, tail: list[str], seeds: int, seconds: float) -> None:
    """The rows so far."""
    said = (
        f"{seeds} seeds, mean and 95 % interval over seeds (t). {time.strftime('%Y-%m-%d')}, {platform.machine()}, Python "
        f"{platform.python_version()}, torch {version('torch')}, {seconds:.0f} s."
    )
    (HERE / "results").mkdir(exist_ok=True)
    text = "\n".join([*lines_of(data, found), *tail]).strip()
    (HERE / "results" / f"{data}.md").write_text(f"{text}\n\n{said}\n", encoding="utf-8")
    (HERE / "results" / f"{data}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
