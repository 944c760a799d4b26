"""Does a hospital's ledger hold every step that was run, whenever the process is killed?

    python experiments/kill_anywhere/run.py --kills 200

Trains a tiny private federation once in peace. Then trains it again and again, killed (SIGKILL) at random moments and
started with --resume each time, until that many kills have been made. After each kill every ledger is verified and its
charged steps are compared with the run steps that `traced.py` counted. Each federation is let go to its end, and its
final weights are compared with those of the peaceful run, bit for bit. Exit code 1 where anything does not hold.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from fedimaging.privacy.ledger_verify import head_path, verify

HERE = Path(__file__).parent
ROUNDS = 12
ROUNDS_A_LIFE = 3.0  # a life is cut at most so many rounds after its first step, so that a federation takes several kills
EARLY = 0.15  # the share of kills before a life's first step: while it loads, reads the checkpoint and enrols
PATIENCE_SECONDS = 300.0

STUDY: dict[str, Any] = {
    "name": "kill-anywhere", "seed": 0,
    "data": {
        "source": "phantoms", "image_size": [16, 16], "channels": 1, "split": {"test": 0.25},
        "phantoms": {"patients": 36, "hospitals": 3, "scans_per_patient": [1, 2]},
    },
    "task": {"kind": "binary", "label": "lesion"}, "hospitals": {"by": "column"},
    "model": {"name": "small_cnn", "options": {"width": 4}},
    "training": {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.9, "batch_size": 8, "local_epochs": 4},
    "privacy": {"target_epsilon": 8.0, "delta": 1e-4, "engine": "loop"},
    "federation": {"rounds": ROUNDS, "algorithm": "fedavgm", "server_momentum": 0.5, "average_last": 2},
    "evaluation": {"every": 3, "resamples": 100, "examples": 0},
    "policy": {"budget_epsilon": 10_000.0},  # crashes are charged: the budget is not what is tested here
}  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """One kill: in which federation, how long after the start, where it fell, and what the books said afterwards."""

    federation: int
    seconds: float
    fell: str
    rounds_done: int
    charged: dict[str, int]
    run: dict[str, int]


class Broken(Exception):
    """Something that must hold does not."""


class Federation:
    """One run folder with the trace beside it."""

    def __init__(self, folder: Path, study: Path, workers: int, *more: str) -> None:
        self.folder, self.trace, self.errors = folder, folder.with_suffix(".trace"), folder.with_suffix(".errors")
        self.command = [
            sys.executable, str(HERE / "traced.py"), "simulate", str(study), "--out", str(folder), "--resume",
            "--workers", str(workers), "-q", *(more or ("--no-report",)),
        ]  # fmt: skip
        self.trace.touch()

    def start(self, **settings: str) -> "subprocess.Popen[bytes]":
        """A new life of the same run, with further settings of `traced.py`."""
        environment = os.environ | {"KILL_ANYWHERE_TRACE": str(self.trace)} | settings
        with self.errors.open("w") as errors:
            return subprocess.Popen(self.command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)

    def must_end_well(self, process: "subprocess.Popen[bytes]") -> None:
        """Error: Broken with what the process said last, if it ended with another code than 0."""
        if process.wait(timeout=PATIENCE_SECONDS):
            raise Broken(f"{self.folder.name} ended with exit code {process.returncode}: {self.errors.read_text()[-500:]}")

    def rounds(self) -> list[dict[str, Any]]:
        """The results of whole rounds; one that was run again stands twice."""
        path = self.folder / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def books(self) -> tuple[dict[str, int], dict[str, int], int]:
        """(charged, run) steps by hospital, baselines included, and the number of reservations that nobody settled.

        Errors: LedgerError where a ledger is not in order, Broken where a hospital ran more than it was charged.
        """
        run = Counter(self.trace.read_text().split())  # first: a worker that outlives the kill may still go on
        charged: Counter[str] = Counter()
        unsettled = 0
        for site in sorted(self.folder.glob("**/sites/*")):
            ledger = site / "ledger.sqlite"
            if not head_path(ledger).exists():  # its creation was cut short, before anything could be charged
                continue
            chain = verify(ledger)
            charged[site.name] += sum(charge.steps for charge in chain.charges())
            kinds = Counter(row.kind for row in chain.rows)
            unsettled += kinds["reserved"] - kinds["settled"]
        for name, steps in run.items():
            if charged[name] < steps:
                raise Broken(f"{self.folder.name}: {name} ran {steps} steps and is charged {charged[name]}")
        return dict(charged), dict(run), unsettled

    def weights(self) -> dict[str, np.ndarray]:
        """The final model."""
        return load_file(self.folder / "weights.safetensors")


def in_peace(federation: Federation) -> tuple[float, float]:
    """Run to the end; returns the seconds until the first step of this life, and of a round of any."""
    size, began = federation.trace.stat().st_size, time.monotonic()
    process = federation.start()
    first = _wait(process, lambda: federation.trace.stat().st_size > size) - began
    federation.must_end_well(process)
    return first, statistics.median(sum(row["seconds"].values()) for row in federation.rounds())


def one_life(federation: Federation, draw: random.Random, loading: float, a_round: float) -> tuple[str, float] | None:
    """Start the run again and kill it at a random moment; where it fell and when. None: it reached its end before."""
    _, _, unsettled = federation.books()
    size = federation.trace.stat().st_size
    began = time.monotonic()
    process = federation.start()
    early = draw.random() < EARLY
    delay = draw.random() * (loading if early else ROUNDS_A_LIFE * a_round)
    if not early:
        _wait(process, lambda: federation.trace.stat().st_size > size)
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        seconds = time.monotonic() - began
        return _where(federation, size, unsettled), seconds
    federation.must_end_well(process)
    return None


def _wait(process: "subprocess.Popen[bytes]", seen: Callable[[], bool]) -> float:
    """Wait until `seen`, or the process ends; returns the time."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not seen() and process.poll() is None:
        if time.monotonic() > until:
            process.kill()
            raise Broken(f"nothing happened for {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.002)
    return time.monotonic()


def _where(federation: Federation, size: int, unsettled: int) -> str:
    if federation.books()[2] > unsettled:
        return "inside a hospital's round"
    return "before the first step" if federation.trace.stat().st_size == size else "between hospitals' rounds"


def kill_many(kills: int, draw: random.Random, study: Path, folder: Path, workers: int) -> tuple[list[Kill], dict[str, Any]]:
    """Make so many kills; returns them, with what was measured on the way. Errors: Broken, LedgerError."""
    calm = Federation(folder / "calm", study, workers)
    loading, a_round = in_peace(calm)
    found: list[Kill] = []
    expected, number = calm.weights(), 0
    calm_steps = sum(calm.books()[1].values())
    while len(found) < kills:
        number += 1
        federation = Federation(folder / f"killed_{number}", study, workers)
        while True:
            if len(found) == kills:
                federation.must_end_well(federation.start())  # the last federation, too, must reach its end
                break
            life = one_life(federation, draw, loading, a_round)
            if life is None:
                break
            charged, run, _ = federation.books()
            done = len({row["round"] for row in federation.rounds()})
            found.append(Kill(number, round(life[1], 3), life[0], done, charged, run))
            print(f"{len(found):4d} {life[0]:27s} {life[1]:6.1f} s, {done} rounds done, "
                  f"charged {sum(charged.values())}, run {sum(run.values())}", flush=True)  # fmt: skip
        charged, run, _ = federation.books()
        if not all(np.array_equal(expected[name], value) for name, value in federation.weights().items()):
            raise Broken(f"{federation.folder.name}: the final weights differ from those of the undisturbed run")
        print(f"     federation {number} ended: same bits; charged {sum(charged.values())}, run {sum(run.values())}", flush=True)
    facts = {"federations": number, "seconds_to_first_step": loading, "seconds_a_round": a_round, "calm_steps": calm_steps}
    return found, facts


def main() -> int:
    """Run the experiment and write results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["FEDIMAGING_CACHE"] = str(Path(temporary) / "store")
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
        os.environ["OMP_NUM_THREADS"] = "1"  # arrays this small gain nothing from threads, and lose on a busy machine
        study = Path(temporary) / "study.yaml"
        study.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
        try:
            found, facts = kill_many(asked.kills, random.Random(asked.seed), study, Path(temporary), asked.workers)
        except Broken as broken:
            print(f"BROKEN: {broken}", file=sys.stderr)
            return 1
    fell = Counter(kill.fell for kill in found)
    result = {
        "date": datetime.date.today().isoformat(), "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "kills": len(found), "workers": asked.workers, "seed": asked.seed,
        "fell": dict(fell), "seconds": round(time.monotonic() - began, 1), **facts,
        "study": STUDY, "each": [asdict(kill) for kill in found],
    }  # fmt: skip
    path = HERE / "results" / f"{len(found)}_kills_{asked.workers}_workers.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    places = ", ".join(f"{count} {where}" for where, count in fell.items())
    print(f"{len(found)} kills ({places}), {facts['federations']} federations: never a step uncharged, every ledger in order, "
          f"every final model the same bits; {path}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
