"""How does a model do beyond the patients and hospitals it was trained on?

    python experiments/beyond_training/run.py --data FOLDER_OF_THE_SHARED_IMAGES

One `fedimaging simulate` of the chest X-rays of real sites, all eight of which train, with baselines and one federation more
without each hospital; four in ten patients test, one or two in ten validate (of the split seeds, the first with which every
hospital has training patients to spare). Writes results/table.md from its
report.json, and leaves the page in the folder of `--out`. No picture of a patient is among the results.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OVERRIDES = (
    "hospitals.held_out=[]", "data.split={test: 0.4, validation: 0.15, seed: 1}", "evaluation.groups=[sex,age]",
    "evaluation.age_bands=[50,65]", "evaluation.operating_point={sensitivity: 0.9}", "evaluation.calibration=temperature",
    "evaluation.every=0",
)  # fmt: skip


def simulate(data: Path, out: Path) -> dict[str, Any]:
    """Run, or go on with, the one simulation; its report."""
    overrides = [part for text in (*OVERRIDES, f"data.root={data}") for part in ("-o", text)]
    subprocess.run([
        sys.executable, "-m", "fedimaging.cli", "simulate", "configs/chest_x_ray_sites.yaml", "--out", str(out), "--resume",
        "--baselines", "--leave-one-out", "--quiet", *overrides,
    ], check=True, cwd=ROOT)  # fmt: skip
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def figure(raw: dict[str, Any] | None, *, sign: bool = False) -> str:
    """`0.91 (0.85 to 0.97)`, or why there is none."""
    if raw is None:
        return "–"
    if raw["value"] is None:
        return raw.get("why") or "one class only"
    number = "{:+.2f}" if sign else "{:.2f}"
    value, low, high = (None if raw[key] is None else number.format(raw[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})" if low is not None else f"{value} (no interval)"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def matrix(report: dict[str, Any]) -> str:
    """Every model at every hospital; a hospital's own model in bold."""
    found = report["matrix"]
    tested = {name: report["sites"][name]["test_patients"] for name in found["hospitals"]}
    rows = []
    for row in found["rows"]:
        cells = {name: figure(cell) for name, cell in row["cells"].items()}
        rows.append([row["model"], *(f"**{cells[name]}**" if name == row["model"] else cells[name] for name in cells)])
    return table(["model", *(f"{name}, {count} patients" for name, count in tested.items())], rows)


def left_out(report: dict[str, Any]) -> str:
    """External beside internal."""
    found = report["leave_one_out"]
    rows = []
    for name, row in found["hospitals"].items():
        patients = str(row["external"]["n_patients"])
        rows.append([name, patients, figure(row["external"]), figure(row["internal"]), figure(row["external_same"]),
                     figure(row["difference"], sign=True)])  # fmt: skip
    mean = found["mean"]
    rows.append(["mean over hospitals", "", "", figure(mean["internal"]), figure(mean["external"]),
                 figure(mean["difference"], sign=True)])  # fmt: skip
    return table(["hospital", "patients", "never saw it, all its patients", "trained with it, its test patients",
                  "never saw it, the same test patients", "difference"], rows)  # fmt: skip


def groups(report: dict[str, Any]) -> str:
    """Sex and age with their gaps, then the worst."""
    rows = []
    for column, tables in report["groups"].items():
        for name, one in tables.items():
            result = f"{one['groups']} too small" if name == "too few" else figure(one["auroc"])
            rows.append([column, name, str(one["n_patients"] if name == "too few" else one["auroc"]["n_patients"]), result])
        gap = report["group_gaps"][column]
        if gap:
            rows.append([column, f"{gap['best']} minus {gap['worst']}", str(gap["n_patients"]),
                         f"{figure(gap, sign=True)}, p = {gap['p_value']:.2g}"])  # fmt: skip
    for kind in ("worst_hospital", "worst_group"):
        worst = report[kind]
        if worst:
            name = worst.get("hospital") or f"{worst['column']} {worst['group']}"
            rows.append([kind.replace("_", " "), name, str(worst["n_patients"]), f"{figure(worst)}, of {worst['compared']}"])
    return table(["column", "group", "test patients", "AUROC"], rows)


def calibration(report: dict[str, Any]) -> str:
    """Before and after one temperature, over all test patients and where a hospital or group is large enough."""
    block = report["calibration"]
    before, after = (_places(block[key]) for key in ("before", "after"))
    rows = []
    for name, old in before.items():
        new = after.get(name) or {"ece": None, "brier": None}
        if old:
            rows.append([name, str(old["n_patients"]), figure(old["ece"]), figure(new["ece"]), figure(old["brier"]),
                         figure(new["brier"])])  # fmt: skip
    head = ["patients", "number", "ECE before", "ECE after", "Brier before", "Brier after"]
    return f"{block['tempering']['words']}\n\n{table(head, rows)}"


def _places(tables: dict[str, Any] | None) -> dict[str, dict[str, Any] | None]:
    """All test patients, each hospital, each group; empty where the run has no such tables."""
    if tables is None:
        return {}
    grouped = {f"{column} {name}": one for column, values in tables["groups"].items() for name, one in values.items()}
    return {"all": tables["test"], **tables["sites"], **grouped}


def operating_point(report: dict[str, Any]) -> str:
    """The rates at the threshold that validation patients gave."""
    point = report["operating_point"]
    if point["threshold"] is None:
        return f"No threshold: {point['why']}."
    names = ("sensitivity", "specificity", "ppv", "npv")
    rows = [["validation patients", *(figure(point["validation"][name]) for name in names)],
            ["test patients", *(figure(point["test"][name]) for name in names)]]  # fmt: skip
    return f"Threshold {point['threshold']:.3g}.\n\n{table(['', *names], rows)}"


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("beyond-training-run"))
    asked = parser.parse_args()
    report = simulate(asked.data.resolve(), asked.out.resolve())
    parts = {
        "Hospital × hospital, AUROC": matrix(report), "Leave one hospital out, AUROC": left_out(report),
        "Groups": groups(report), "Operating point (sensitivity of 0.9 on validation patients)": operating_point(report),
        "Calibration": calibration(report),
    }
    where = f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    foot = f"One seed; intervals of 95 % over patients. {report['created'][:10]}, {where}."
    text = "\n\n".join(f"## {title}\n\n{part}" for title, part in parts.items())
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "table.md").write_text(f"{text}\n\n{foot}\n", encoding="utf-8")
    print(f"{text}\n\n{foot}")


if __name__ == "__main__":
    main()
