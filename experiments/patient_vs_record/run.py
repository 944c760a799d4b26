"""What is a claim "ε = 8" worth to a patient with several scans, if it was made for each scan?

    python experiments/patient_vs_record/run.py [--seeds 3] [--epsilon 8]

Trains on generated patients with 1, 2, 4 and 8 scans each, once with patients and once with single scans as the unit of the same
ε. For each: accuracy, the ε that the claim means for a whole patient, the greatest true positive rate that it allows at 1 %
false positives, and the rate that the best attack on the worst patient has: one whose scans all push in one direction, in
100,000 simulated trainings with that patient and 100,000 without; were it above what the guarantee allows, this would fail.
Writes results/table.md and results/results.json.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.stats import binom

from fedimaging.audits.bounds import rate_at_least, rate_at_most
from fedimaging.privacy.accounting import patient_steps_of
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.ceilings import tpr_ceiling_of_steps
from fedimaging.privacy.group import patient_epsilon

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCANS = (1, 2, 4, 8)
FPR = 0.01
_WORLDS = 100_000
_BATCH = 2_000


def sweep(out: Path, epsilon: str, seeds: int) -> dict:
    """Both units, all numbers of scans; the summary."""
    scans = ",".join(f"[{count}, {count}]" for count in SCANS)
    subprocess.run([
        sys.executable, "-m", "fedimaging.cli", "sweep", str(HERE / "study.yaml"), "--epsilon", f"{epsilon},inf", "--seeds",
        str(seeds), "--unit", "patient,record", "--no-baselines", "--quiet", "--out", str(out),
        "-o", f"data.phantoms.scans_per_patient={scans}",
    ], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)  # fmt: skip
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def weakest_charge(out: Path, unit: str, scans: int) -> Charge:
    """What the hospital whose guarantee is weakest charged, in the run of the first seed."""
    found = []
    for report in sorted(out.glob("runs/*/report.json")):
        tree = json.loads(report.read_text(encoding="utf-8"))
        study = (report.parent / "study.yaml").read_text(encoding="utf-8")
        spent = [site["privacy"] for site in tree["sites"].values() if site.get("privacy")]
        if spent and spent[0]["unit"] == unit and _scans_in(study) == scans and tree["seed"] == 0:
            found += [Charge(one["noise_multiplier"], one["sample_rate"], one["steps"], unit,
                             scans_per_patient=scans if unit == "record" else None) for one in spent]  # fmt: skip
    return max(found, key=lambda charge: patient_epsilon([charge], 1e-4))


def _scans_in(study: str) -> int:
    import yaml

    return int(yaml.safe_load(study)["data"]["phantoms"]["scans_per_patient"][1])


@dataclass(frozen=True)
class Attacked:
    """How many worst patients were found, and how many false alarms there were, in `_WORLDS` trainings each."""

    found: int
    false_alarms: int

    def allowed(self, charge: Charge) -> float:
        """The greatest rate that the guarantee allows at the upper limit (97.5 %) of the false alarms."""
        return tpr_ceiling_of_steps(patient_steps_of([charge]), rate_at_most(self.false_alarms, _WORLDS, 0.975))


def attack(charge: Charge, most: int, seed: int = 0) -> Attacked:
    """The likelihood-ratio attack on a patient of whom up to `most` equal records enter a step. The threshold is taken from
    trainings of their own, so that it is not fitted to the false alarms that are counted."""
    rng = np.random.default_rng([seed, most])
    counts = np.arange(most + 1)
    chance = binom.pmf(counts, most, charge.sample_rate)

    def scores(present: bool) -> np.ndarray:
        found = []
        for _ in range(_WORLDS // _BATCH):
            drawn = rng.binomial(most, charge.sample_rate, (_BATCH, charge.steps)) if present else 0
            seen = drawn + charge.noise_multiplier * rng.standard_normal((_BATCH, charge.steps))
            scaled = (counts * seen[..., None] - counts**2 / 2) / charge.noise_multiplier**2
            top = scaled.max(-1, keepdims=True)
            found.append((np.log((chance * np.exp(scaled - top)).sum(-1)) + top[..., 0]).sum(1))
        return np.concatenate(found)

    threshold = np.quantile(scores(False), 1 - FPR, method="higher")
    return Attacked(int((scores(True) > threshold).sum()), int((scores(False) > threshold).sum()))


def row(out: Path, summary: dict, unit: str, scans: int, epsilon: str) -> dict:
    """One line of the table."""
    charge = weakest_charge(out, unit, scans)
    cell = _cell(summary, unit, scans, float(epsilon))
    attacked = attack(charge, scans if unit == "record" else 1)
    return {
        "unit": unit, "scans": scans, "auroc": cell["mean"], "low": cell["low"], "high": cell["high"],
        "noise_multiplier": charge.noise_multiplier, "sample_rate": charge.sample_rate, "steps": charge.steps,
        "patient_epsilon": patient_epsilon([charge], 1e-4), "ceiling": tpr_ceiling_of_steps(patient_steps_of([charge]), FPR),
        "found": attacked.found / _WORLDS, "false_alarms": attacked.false_alarms / _WORLDS,
        "found_low": rate_at_least(attacked.found, _WORLDS, 0.975), "allowed": attacked.allowed(charge),
    }


def _cell(summary: dict, unit: str, scans: int, epsilon: float) -> dict:
    text = f"[{scans}, {scans}]"
    for cell in summary["cells"]:
        same = cell["arm"] == "federated" and text in cell["keys"].values()
        if same and (cell["epsilon"] is None or cell["epsilon"] == "inf" or float(cell["epsilon"]) == float("inf")):
            if epsilon == float("inf"):
                return cell["test"]
        elif same and cell["unit"] == unit and float(cell["epsilon"]) == epsilon:
            return cell["test"]
    raise SystemExit(f"the sweep has no cell for {unit}, {scans} scans, ε = {epsilon}")


def main() -> None:
    """Sweep, attack, table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epsilon", default="8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("sweeps") / "patient_vs_record")
    given = parser.parse_args()
    began, out = time.monotonic(), given.work.resolve()
    summary = sweep(out, given.epsilon, given.seeds)
    rows = [row(out, summary, unit, scans, given.epsilon) for scans in SCANS for unit in ("patient", "record")]
    lines = [
        f"| scans of each patient | ε = {given.epsilon} claimed for each | AUROC (without DP) | ε of a whole patient | "
        "most that an attack may find at 1 % false alarms | the best attack on the worst patient finds, at false alarms |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        free = _cell(summary, "", one["scans"], float("inf"))["mean"]
        spread = "" if one["low"] is None else f" ({one['low']:.3f}–{one['high']:.3f})"
        lines.append(
            f"| {one['scans']} | {one['unit']} | {one['auroc']:.3f}{spread} ({free:.3f}) | {one['patient_epsilon']:.1f} | "
            f"{one['ceiling']:.1%} | {one['found']:.1%}, at {one['false_alarms']:.2%} |"
        )
        if one["found_low"] > one["allowed"]:
            raise SystemExit(f"the attack finds more than the guarantee allows: {one}")
    said = (
        f"{given.seeds} seeds, interval over seeds; δ = 1e-4; {_WORLDS} simulated trainings each with and without the patient; "
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, "
        f"{time.monotonic() - began:.0f} s."
    )
    text = "\n".join([*lines, "", said])
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "table.md").write_text(text + "\n", encoding="utf-8")
    (HERE / "results" / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
