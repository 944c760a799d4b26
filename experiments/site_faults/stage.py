"""One federation of real processes: its folders, what they write, who is killed when."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from network import Loopback, Namespaces

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "container"))

import demonstration  # noqa: E402  (found by the line above)
from demonstration import fedimaging, write_scans  # noqa: E402

from fedimaging.data.spec import PhantomSpec  # noqa: E402

SITES = ("hospital_01", "hospital_02", "hospital_03")
ROUNDS, STEPS = 10, 120
DEADLINE_SECONDS = 20.0
PATIENCE_SECONDS = 300.0
_TRACED = ROOT / "experiments" / "kill_anywhere" / "traced.py"

STUDY: dict[str, Any] = {
    "name": "faults", "seed": 0,
    "data": {"source": "manifest", "path": "manifest.csv", "root": ".", "image_size": [16, 16], "channels": 1,
             "split": {"test": 0.2}},
    "task": {"kind": "binary", "label": "lesion"},
    "hospitals": {"by": "column", "sites": list(SITES)},
    "model": {"name": "small_cnn", "options": {"width": 4}},
    "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 4, "local_steps": STEPS},
    "privacy": {"noise_multiplier": 4.0, "delta": 1e-4, "engine": "loop"},
    "federation": {"rounds": ROUNDS, "minimum_replies": 2, "algorithm": "fedavgm", "server_momentum": 0.5},
    "evaluation": {"every": 0, "resamples": 100, "examples": 0}, "runtime": {"device": "cpu", "workers": 1},
}  # fmt: skip
POLICY = {
    "minimum_patients": 10, "minimum_hospitals": 2, "maximum_epochs": None, "allow_simulated_noise": True,
    "in_total": {"epsilon": 1000.0, "delta": 1e-4}, "per_year": {"epsilon": 1000.0, "delta": 1e-4},
}  # fmt: skip
STUDIES = {"patient": None, "deadline": DEADLINE_SECONDS}


def lay_out(folder: Path, net: Namespaces | Loopback) -> None:
    """Server, hospitals and both studies (without and with a deadline), up to the point where all can be started."""
    folder.mkdir(parents=True)
    fedimaging(folder, f"server init server --host {net.host} --port {net.port}")
    demonstration.IMAGE_SIZE = (16, 16)  # as the study wants them: pixels in the store are those of the files
    write_scans(folder / "scans", PhantomSpec(patients=150, hospitals=len(SITES), scans_per_patient=(1, 1)))
    for name, seconds in STUDIES.items():
        tree = STUDY | {"name": f"faults-{name}", "federation": STUDY["federation"] | {"deadline_seconds": seconds}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    for site in SITES:
        server = f"{net.host}:{net.port}"
        fedimaging(folder, f"site init {site} --name {site} --server {server} --ca server/ca.crt --data ../scans/{site}")
        policy = folder / site / "policy.yaml"
        policy.write_text(yaml.safe_dump(yaml.safe_load(policy.read_text()) | POLICY))
        fedimaging(folder, f"server add-site server {site} {site}/keys/node.pub")
        for name in STUDIES:
            fedimaging(folder, f"site approve {site} {name}.yaml --name 'A. Person' --reason 'a test' --yes")
    _pool(folder / "scans")


def _pool(scans: Path) -> None:
    """One manifest of all hospitals, for the simulation."""
    lines = ["image,patient_id,site,lesion"]
    for site in SITES:
        lines += [f"{site}/{row}" for row in (scans / site / "manifest.csv").read_text().splitlines()[1:]]
    (scans / "manifest.csv").write_text("\n".join(lines) + "\n")


class Stage:
    """The processes of one federation, by name: "start", "run", and the hospitals'. `close` ends them all."""

    def __init__(self, laid_out: Path, folder: Path, net: Namespaces | Loopback, study: str) -> None:
        shutil.copytree(laid_out, folder)
        self.folder, self.net, self.study = folder, net, folder / f"{study}.yaml"
        self.running = dict[str, subprocess.Popen[bytes]]()
        self.extra, self.since = dict[str, dict[str, str]](), dict[str, int]()

    def begin(self) -> None:
        """Start the server, the hospitals and the study."""
        self.start("start")
        for site in SITES:
            self.start(site)
        self.until(lambda: "hospitals reach" in (self.folder / "start.log").read_text())
        self.start("run")

    def start(self, name: str, *, resume: bool = False) -> float:
        """A new life of one process; returns the moment."""
        command = {"start": ["server", "start", "server"], "run": ["server", "run", "server", str(self.study)]}.get(
            name, ["site", "run", name])  # fmt: skip
        place = "server" if name in ("start", "run") else name
        program = ["-m", "fedimaging.cli"] if place == "server" else [str(_TRACED)]
        # Several hospitals on one small machine: with more threads than cores each, they hinder each other.
        traced = {"OMP_NUM_THREADS": "1", "KILL_ANYWHERE_TRACE": str(self.folder / f"{name}.trace")}
        environment = os.environ | traced | self.extra.get(name, {})
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*self.net.inside(place), sys.executable, *program, *command, *(["--resume"] if resume else [])],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return time.monotonic()

    def kill(self, name: str) -> None:
        """kill -9."""
        self.running[name].kill()
        self.running[name].wait(20)

    def until(self, done: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> float:
        """Wait; returns the moment. Error: RuntimeError with what all said, after so many seconds or where the study ended."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end or ("run" in self.running and self.running["run"].poll() is not None and not done()):
                raise RuntimeError(f"waited in vain\n{self.last_words()}")
            time.sleep(0.02)
        return time.monotonic()

    def mid_round(self, site: str, after: int) -> int:
        """Wait until so many rounds are over and this hospital is inside the next, with a checkpoint; returns its number."""
        self.until(lambda: self.rounds() >= after)
        self.until(lambda: list(self.folder.glob(f"{site}/studies/*/state/progress.npz")))
        self.since = {path.stem: path.stat().st_size for path in self.folder.glob("*.log")}
        return self.rounds() + 1

    def rows(self) -> list[dict[str, Any]]:
        """The rounds' results; one that was run again stands twice."""
        found = list(self.folder.glob("server/runs/*/rounds.jsonl"))
        return [json.loads(line) for line in found[0].read_text().split("\n")[:-1]] if found else []

    def rounds(self) -> int:
        """Whole rounds so far."""
        return len({row["round"] for row in self.rows()})

    def traced(self, *sites: str) -> int:
        """Steps that these hospitals have begun."""
        return sum(path.read_text().count("\n") for site in sites if (path := self.folder / f"{site}.trace").exists())

    def events(self, place: str) -> list[dict[str, Any]]:
        """The audit log, unverified: it may be written just now."""
        lines = (self.folder / place / "audit.jsonl").read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def first_round_after(self, event: str, site: str) -> int:
        """Wait until the hospital trained after such an event; returns the round."""
        def found() -> list[int]:
            events = self.events(site)
            places = [place for place, row in enumerate(events) if row["event"] == event]
            return [row["round"] for row in events[places[-1]:] if row["event"] == "trained"] if places else []

        self.until(found)
        return found()[0]

    def said(self, name: str) -> list[str]:
        """Lines that a screen has shown since the fault began."""
        with (self.folder / f"{name}.log").open("rb") as file:
            file.seek(self.since.get(name, 0))
            return file.read().decode(errors="replace").splitlines()

    def last_words(self) -> str:
        """The ends of all screens."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-2500:]}" for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        """End every process."""
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


class Slowly:
    """Lets a process run only one tenth of a second in every `times` tenths, until told to stop."""

    def __init__(self, process: "subprocess.Popen[bytes]", times: float) -> None:
        self._process, self._times, self._stop = process, times, threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)

    def __enter__(self) -> "Slowly":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._process.send_signal(signal.SIGCONT)

    def _go(self) -> None:
        while not self._stop.is_set():
            self._process.send_signal(signal.SIGSTOP)
            self._stop.wait(0.1 * (self._times - 1))
            self._process.send_signal(signal.SIGCONT)
            self._stop.wait(0.1)
