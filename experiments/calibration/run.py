"""Do probabilities mean what they say, before and after one temperature that hospitals fit without sharing a score?

    python experiments/calibration/run.py --data FOLDER [--work runs/calibration]

Real: the chest X-ray sites and PneumoniaMNIST, before and after, with 95 % intervals over test patients; and, as if every
hospital kept one for itself, with an intercept fitted to its own validation patients on top (`+ own intercept`). Drawn: scores
whose temperature is known, at five hospitals; how near the fit comes at how many validation patients and how much noise, how
often its interval holds the truth, and how often nothing is told. Writes results/table.md and results/results.json.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedimaging.privacy.gaussian import gaussian_epsilon
from fedimaging.privacy.tempering import SENSITIVITY, TEMPERATURES, tempering_totals
from fedimaging.site.simulated import SimulatedFederation, open_simulated_site
from fedimaging.site.site import Site
from fedimaging.training.calibration import Forecasts, calibration
from fedimaging.training.evaluate import evaluate
from fedimaging.training.recalibration import intercept_of, log_odds
from fedimaging.training.temperature import added_curves, fit_temperature, tempered

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STUDIES = (
    ("chest X-ray sites, no DP, exact sums", "chest_x_ray_sites", ("data.split.validation=0.2",)),
    ("PneumoniaMNIST, no DP, exact sums", "pneumonia_mnist", ("privacy=null",)),
    ("PneumoniaMNIST, ε = 8, noise 4", "pneumonia_mnist", ()),
    ("PneumoniaMNIST, ε = 8, noise 0.5", "pneumonia_mnist", ("policy.calibration_noise_multiplier=0.5",)),
    ("PneumoniaMNIST, ε = 8, exact sums", "pneumonia_mnist", ("policy.release_calibration=exact",)),
)
PLANTED = (0.5, 1.0, 2.5)
PATIENTS = (100, 400, 2000)
NOISE = (0.0, 1.0, 4.0)
HOSPITALS = 5
SEEDS = 100
DELTA = 1e-5


def trained(name: str, overrides: tuple[str, ...], data: Path, out: Path) -> dict:
    """The report of a run, done where it is not there yet."""
    if not (out / "report.json").exists():
        given = [part for one in (f"data.root={data}", "evaluation.calibration=temperature", *overrides) for part in ("-o", one)]
        command = [sys.executable, "-m", "fedimaging.cli", "simulate", str(ROOT / "configs" / f"{name}.yaml"), "--out", str(out)]
        subprocess.run([*command, *given], check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def rows_of(label: str, report: dict, run: Path) -> list[dict]:
    """Before, after, and with an intercept of each hospital's own on top."""
    block = report["calibration"]
    temperature = block["tempering"]["temperature"]
    spent = (block["tempering"]["charge"] or {}).get("sites", {})
    cost = max((one["epsilon"] for one in spent.values()), default=0.0)
    rows = [{"study": label, "when": "as trained", **_figures(block["before"]["test"])}]
    if block["after"]:
        told = {"temperature": temperature, "epsilon": cost}
        rows.append({"study": label, "when": "tempered", **_figures(block["after"]["test"]), **told})
    else:
        rows.append({"study": label, "when": "temperature not told", "epsilon": cost})
    own = with_own_intercepts(report, run, temperature["value"] or 1.0)
    base = "tempered" if block["after"] else "as trained"
    return [*rows, {"study": label, "when": f"{base} + own intercept", **_figures(own)}]


def with_own_intercepts(report: dict, run: Path, temperature: float) -> dict:
    """Calibration on all test patients of training hospitals, each forecast moved by its hospital's intercept on validation."""
    federation = SimulatedFederation.open(run)
    with np.load(run / "checkpoint.npz") as kept:
        recent = [kept[name] for name in kept.files if name.startswith("recent")]
        weights = np.asarray(np.mean(recent, axis=0, dtype=np.float64) if recent else kept["weights"], np.float32)
    parts = []
    for place, name in enumerate(federation.names):
        if name in federation.train_names:
            parts.append(_moved(open_simulated_site(run, place), weights, temperature))
    kept_parts = [part for part in parts if part is not None]
    found = Forecasts(*(np.concatenate([getattr(part, key) for part in kept_parts]) for key in vars(kept_parts[0])))
    return calibration(found, least=report["study"]["evaluation"]["minimum_group"], resamples=1000, seed=0).as_json()


def _moved(site: Site, weights: np.ndarray, temperature: float) -> Forecasts | None:
    fitted, tested = (evaluate(site.bench, weights, records, final=False).arrays for records in (
        site.validation_records, site.test_records))
    if not tested:
        return None
    x = log_odds(tempered(tested["scores"], "binary", temperature)[:, 1])
    moved = 0.0
    if fitted:
        own = log_odds(tempered(fitted["scores"], "binary", temperature)[:, 1])
        moved = float(np.nan_to_num(intercept_of(own, (fitted["labels"] == 1).astype(float), fitted["patient"]).value))
    patient = np.char.add(f"{site.name}/", tested["patient"].astype(str))
    return Forecasts(1 / (1 + np.exp(-x - moved)), (tested["labels"] == 1).astype(float), patient)


def _figures(table: dict) -> dict:
    names = ("ece", "brier", "reliability", "resolution", "slope", "intercept")
    plain = {"n": table["n_patients"], "p_value": table["p_value"], "by_chance": table["ece_by_chance"]}
    return plain | {name: table[name] for name in names}


def drawn(temperature: float, patients: int, noise: float) -> dict:
    """Of `SEEDS` federations: error of log T, how often the interval held the truth, how often nothing was told."""
    errors, held, silent = [], 0, 0
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, patients, int(10 * temperature), int(10 * noise)])
        released = [_released(rng, temperature, patients // HOSPITALS, noise) for _ in range(HOSPITALS)]
        fit = fit_temperature(*added_curves(released))
        if np.isnan(fit.value):
            silent += 1
            continue
        errors.append(np.log(fit.value / temperature))
        held += fit.low <= temperature <= fit.high
    told = SEEDS - silent
    return {
        "temperature": temperature, "patients": patients, "noise": noise, "told": told, "held": held,
        "error": float(np.sqrt(np.mean(np.square(errors)))) if told else None,
        "epsilon": gaussian_epsilon(1 / noise, DELTA) if noise else 0.0,
    }


def _released(rng: np.random.Generator, temperature: float, patients: int, noise: float) -> tuple[np.ndarray, float]:
    odds = rng.normal(0, 2, patients)
    labels = (rng.random(patients) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    score = 1 / (1 + np.exp(-temperature * odds))
    sums = tempering_totals(np.stack([1 - score, score], axis=1), labels, np.arange(patients), "binary").arrays["tempering"]
    std = noise * SENSITIVITY
    return sums + std * rng.standard_normal(len(TEMPERATURES)), std


def table(real: list[dict], planted: list[dict]) -> list[str]:
    """Both tables in Markdown."""
    head = ("study", "test patients", "probabilities", "temperature", "ε of it", "calibration error", "by chance", "slope",
            "intercept", "Brier", "p")  # fmt: skip
    other = ("planted temperature", "validation patients at 5 hospitals", "noise multiplier", "ε at each, δ = 1e-5", "told",
             "typical error of T", "interval held it")  # fmt: skip
    return [*_lines(head, map(_real_cells, real)), "", *_lines(other, map(_planted_cells, planted))]


def _lines(head: tuple[str, ...], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


def _real_cells(row: dict) -> list[str]:
    cost = f"{row['epsilon']:.2f}" if "epsilon" in row else ""
    if "ece" not in row:
        return [row["study"], "", row["when"], "", cost, *[""] * 6]
    warm = _text(row["temperature"], 2) if "temperature" in row else ""
    return [
        row["study"], str(row["n"]), row["when"], warm, cost, _text(row["ece"], 3), f"{row['by_chance']:.3f}",
        _text(row["slope"], 2), _text(row["intercept"], 2), _text(row["brier"], 3), f"{row['p_value']:.3f}",
    ]


def _planted_cells(row: dict) -> list[str]:
    error = "" if row["error"] is None else f"{100 * row['error']:.0f} %"
    return [
        f"{row['temperature']:g}", str(row["patients"]), f"{row['noise']:g}", f"{row['epsilon']:.2f}",
        f"{row['told']} of {SEEDS}", error, f"{row['held']} of {row['told']}" if row["told"] else "",
    ]


def _text(found: dict, digits: int) -> str:
    if found["value"] is None:
        return "not defined"
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def main() -> None:
    """Real runs, drawn federations, tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs") / "calibration")
    given = parser.parse_args()
    began, real = time.monotonic(), []
    for place, (label, name, overrides) in enumerate(STUDIES):
        out = (given.work / f"{place}-{name}").resolve()
        real += rows_of(label, trained(name, overrides, given.data.resolve(), out), out)
    planted = [drawn(t, patients, noise) for t in PLANTED for patients in PATIENTS for noise in NOISE]
    facts = f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    lines = [*table(real, planted), "", f"{SEEDS} drawn federations a row; {facts}, {time.monotonic() - began:.0f} s."]
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (HERE / "results" / "results.json").write_text(json.dumps({"real": real, "planted": planted}, indent=1), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
