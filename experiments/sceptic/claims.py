"""Tests 1, 2, 7 and 14: what is printed as epsilon, and what the ledger keeps of it."""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rows import Row, all_of, near, refused

from fedimaging.audits.bounds import one_run_bound, two_world_bounds
from fedimaging.privacy.accounting import calibrate, epsilon, epsilon_by, epsilon_prv, epsilon_rdp
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ceilings import tpr_ceiling
from fedimaging.privacy.gaussian import gaussian_epsilon, gaussian_mu
from fedimaging.privacy.group import group_epsilon, two_sites_epsilon
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.other_sampling import shuffled_epsilon, truncated_poisson_epsilon, without_replacement_epsilon

VECTORS = json.loads((Path(__file__).parents[2] / "tests" / "privacy" / "accountant_vectors.json").read_text(encoding="utf-8"))
DELTAS = {"1e-5": 1e-5, "N^-1.1 (N=2000)": 2000**-1.1}
HOSPITAL = Charge(1.0, 0.016, 3150, "patient")


def accountant_vectors() -> list[Row]:
    """Test 1."""
    pld, rdp, prv, order = [], [], [], []
    for row in VECTORS["cases"]:
        charges = [_charge(row)]
        for name, delta in DELTAS.items():
            said = row["eps"][name]
            found = epsilon(charges, delta), epsilon_rdp(charges, delta), epsilon_prv(charges, delta)
            pld.append(said["google_pld_1e-4"] - 0.001 <= found[0] <= said["google_pld_1e-4"] + 0.003)
            rdp.append(math.isclose(found[1], said["google_rdp"], rel_tol=1e-3))
            prv.append(abs(found[2] - said["opacus_prv"]) <= 0.002)
            order.append(found[0] <= found[2] and found[0] <= found[1])
    return [
        all_of("rows of the vectors by PLD", pld), all_of("rows by RDP", rdp), all_of("rows by PRV", prv),
        all_of("rows in which PLD is the least", order), *_other_vectors(),
        near("σ = 1 by PLD", epsilon([HOSPITAL], 1e-5), 5.578, 0.003),
        near("σ = 1 by PRV", epsilon_prv([HOSPITAL], 1e-5), 5.588, 0.002),
        near("σ = 1 by RDP", epsilon_rdp([HOSPITAL], 1e-5), 6.091, 0.006),
        refused("GDP as a figure", lambda: epsilon_by("gdp", [HOSPITAL], 1e-5)),
    ]  # fmt: skip


def _other_vectors() -> list[Row]:
    """Every other table of the vectors, each by its own tolerance."""
    composed = [
        abs(epsilon([_charge(part) for part in row["parts"]], row["delta"]) - row["eps"]["google_pld"]) <= 0.003
        for row in VECTORS["heterogeneous_and_repeated_composition"]
    ]
    calibrated = []
    for row in VECTORS["calibration"]["rows"]:
        sigma = calibrate(row["target_epsilon"], row["delta"], row["sample_rate"], row["steps"])
        reached = epsilon([Charge(sigma, row["sample_rate"], row["steps"], "patient")], row["delta"])
        calibrated.append(row["target_epsilon"] - 0.03 <= reached <= row["target_epsilon"])
    exact = [abs(gaussian_epsilon(r["mu"], r["delta"]) - r["epsilon"]) <= 1e-4 for r in VECTORS["analytic_gaussian"]["rows"]]
    shuffled = [
        abs(shuffled_epsilon(r["noise_multiplier"], 50, 1e-5) - r["eps_1e5"]) <= 1e-3
        for r in VECTORS["no_amplification_50_epochs"]["rows"]
    ]
    fixed = [
        math.isclose(without_replacement_epsilon(float(sigma), 3150, units=2000, batch=32, delta=1e-5), said, rel_tol=1e-3)
        for sigma, said in VECTORS["fixed_size_without_replacement_replace_one"]["rows"].items()
    ]
    groups = [
        math.isclose(group_epsilon(r["sigma"], r["q"], r["T"], r["K"], r["delta"]), r["eps_mixture_of_gaussians"], rel_tol=0.005)
        for r in VECTORS["patient_group_blowup"]["rows"]
    ]
    ceilings = [
        math.isclose(tpr_ceiling([_charge(r | {"sample_rate": 0.016, "steps": 3150})], float(fpr)), said, rel_tol=0.01)
        for r in VECTORS["max_tpr_at_fpr"]["rows"] for fpr, said in _ceilings(r)
    ]
    sites = [
        math.isclose(math.sqrt(r["T"]) / gaussian_mu(r["eps"], r["delta"]), r["z"], rel_tol=1e-5)
        for r in VECTORS["site_level"]["rows"]
    ]
    return [
        all_of("composition of different parts", composed), all_of("calibration", calibrated), all_of("exact Gaussian", exact),
        all_of("shuffled", shuffled), all_of("without replacement", fixed), all_of("patients of several records", groups),
        all_of("ceilings of attacks", ceilings), all_of("hospital level", sites), all_of("bounds of audits", _audit_bounds()),
    ]  # fmt: skip


def _audit_bounds() -> list[bool]:
    one = [
        abs(one_run_bound(r["m"], r["r"], r["v"], r["delta"], 1 - r["p"]) - r["eps_lb"]) <= 1e-3
        for r in VECTORS["one_run_audit"]["rows"]
    ]
    two = [
        abs(two_world_bounds(r["fp"], r["fn"], r["n_per_world"], r["delta"], r["conf"])[0] - r["eps_lb"]) <= 1e-3
        for r in VECTORS["two_world_audit"]["rows"]
    ]
    return one + two


def _ceilings(row: dict[str, Any]) -> list[tuple[str, float]]:
    return [(key.removeprefix("max_TPR@FPR="), value) for key, value in row.items() if key.startswith("max_TPR")]


def _charge(row: dict[str, Any]) -> Charge:
    return Charge(row["noise_multiplier"], row["sample_rate"], row["steps"], "patient")


def single_release() -> list[Row]:
    """Test 2."""
    return [
        near("one release, σ = 1", epsilon([Charge(1.0, 1.0, 1, "patient")], 1e-5), 4.3772, 0.003, 4),
        near("50 releases, σ = 10", epsilon([Charge(10.0, 1.0, 50, "patient")], 1e-5), 2.9432, 0.003, 4),
    ]


HOSPITAL_PROCESS = """
import os, signal, sys
from pathlib import Path
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger import Ledger
folder, last, deadly = Path(sys.argv[1]), int(sys.argv[2]), {int(word) for word in sys.argv[3:]}
ledger, done, ran = Ledger.open_or_create(folder / "ledger.sqlite"), folder / "done", open(folder / "ran", "ab", buffering=0)
for number in range(int(done.read_text()) + 1 if done.exists() else 1, last + 1):
    entry = ledger.reserve(study="s", run="federated", round=number, charge=Charge(1.0, 0.016, 63, "patient"),
                           budget=Budget(100.0, 1e-5), epsilon_of=lambda charges, delta: 0.0)
    for step in range(63):
        ran.write(b".")
        marker = folder / f"killed_{number}"
        if number in deadly and step == 40 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    ledger.settle(entry.id, 63)
    done.write_text(str(number))
"""


def ledger_across_crashes() -> list[Row]:
    """Test 7."""
    with tempfile.TemporaryDirectory() as name:
        calm, killed = Path(name) / "calm", Path(name) / "killed"
        _hospital(calm, 50)
        steps, spent = _books(calm)
        _hospital(calm, 60)
        lives = _hospital(killed, 50, deadly=(3, 17))
        charged, spent_killed = _books(killed)
        ran = (killed / "ran").stat().st_size
        longer = _books(calm)[1]
    return [
        Row("50 rounds of 63 steps, charged", "3150", str(steps), steps == 3150),
        near("their ε", spent, 5.578, 0.003), near("10 rounds more", longer, 6.171, 0.003),
        near("what a reset accountant would show", epsilon([Charge(1.0, 0.016, 63, "patient")], 1e-5), 0.992, 0.003),
        Row("50 rounds, killed -9 in rounds 3 and 17: steps charged, and run", "charged ≥ run",
            f"{charged} and {ran}, in {lives} lives", charged >= ran > 3150 and lives == 3),
        Row("its ε", "≥ 5.578", f"{spent_killed:.3f}", spent_killed >= 5.577),
    ]  # fmt: skip


def _hospital(folder: Path, rounds: int, deadly: tuple[int, ...] = ()) -> int:
    """A process that trains so many rounds, started again whenever it was killed; returns how often it lived."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOSPITAL_PROCESS, str(folder), str(rounds), *map(str, deadly)]
    for life in range(1, 10):
        if subprocess.run(command, timeout=120, check=False).returncode == 0:
            return life
    raise RuntimeError("the hospital's process did not come to its end")


def _books(folder: Path) -> tuple[int, float]:
    charges = Ledger(folder / "ledger.sqlite").charges()
    return sum(charge.steps for charge in charges), epsilon(charges, 1e-5)


def group_and_site() -> list[Row]:
    """Test 14."""
    return [
        near("a patient of 4 records, σ = 1", group_epsilon(1.0, 0.016, 3150, 4, 1e-5), 31.56, 0.16, 2),
        near("a patient at two hospitals", two_sites_epsilon([HOSPITAL], [HOSPITAL], 1e-5), 8.248, 0.003),
        near("batches cut to 48", truncated_poisson_epsilon(1.0, 0.016, 3150, units=2000, most=48, delta=1e-5), 7.37, 0.01, 2),
        near("shuffled batches", shuffled_epsilon(1.0, 50, 1e-5), 54.38, 0.01, 2),
        refused("shuffled batches charged as Poisson", lambda: Charge(1.0, 0.016, 3150, "patient", sampling="shuffle")),
        refused("a budget passed", _pass_the_budget),
    ]  # fmt: skip


def _pass_the_budget() -> None:
    with tempfile.TemporaryDirectory() as name:
        ledger = Ledger.create(Path(name) / "ledger.sqlite")
        ledger.reserve(study="s", run="r", round=1, charge=HOSPITAL, budget=Budget(5.0, 1e-5), epsilon_of=epsilon)
