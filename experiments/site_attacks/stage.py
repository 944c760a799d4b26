"""A federation to be attacked: a real server, a real hospital process in its own site folder, and a line between them.

`Stage.look()` says what can be seen of the hospital from its own files and from the kernel; attacks are judged by what
changed between two looks.
"""

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tap import Call, Tap

from container.demonstration import fedimaging, write_scans
from fedimaging.data.spec import PhantomSpec
from fedimaging.privacy.accounting import epsilon
from fedimaging.runs.server_folder import ServerFolder
from fedimaging.site import audit_log
from fedimaging.site.folder import SiteFolder
from fedimaging.study.load import load
from fedimaging.study.schema import Study

VICTIM, LIAR, STOCK = "hospital_01", "hospital_02", "hospital_03"
ROUNDS, SECRET_PATIENT, SECRET_FILE = 6, "ROSSI-4711", "rossi-4711-thorax.png"
_PATIENCE_SECONDS = 120.0
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def study_tree(name: str, **training: Any) -> dict[str, Any]:
    """A small study over the one hospital that is attacked."""
    return {
        "name": name, "seed": 3,
        "data": {"source": "manifest", "path": "manifest.csv", "root": ".", "image_size": [16, 16], "channels": 1},
        "task": {"kind": "binary", "label": "lesion"}, "hospitals": {"by": "column", "sites": [VICTIM]},
        "model": {"name": "small_cnn", "options": {"width": 4}},
        "training": {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 8, "local_steps": 3} | training,
        "privacy": {"noise_multiplier": 2.0, "delta": 1e-4},
        "federation": {"rounds": ROUNDS}, "evaluation": {"resamples": 100}, "runtime": {"device": "cpu", "workers": 1},
    }


@dataclass(frozen=True)
class Look:
    """The hospital at one moment. `ledger`: events in it; `events`: lines of its audit log; `files`: every file of the
    whole stage but the server's own; `largest_mb`: most memory since the last `forget_peak`."""

    ledger: int
    epsilon: float
    events: int
    files: frozenset[str]
    largest_mb: float
    calls: int
    alive: bool


class Stage:
    """Lay out and run everything in one folder; a context manager that ends every process that it started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._running = folder, dict[str, subprocess.Popen[bytes]]()
        self._epsilon = (-1, 0.0)
        os.environ |= _QUIET | {"FEDIMAGING_CACHE": str(folder / "cache"), "FLWR_HOME": str(folder / "server" / "flower")}
        self.port = free_port()
        fedimaging(folder, f"server init server --host 127.0.0.1 --port {self.port} --listen 127.0.0.1")
        self.server = ServerFolder.open(folder / "server")
        write_scans(folder / "scans", PhantomSpec(patients=150, hospitals=3, scans_per_patient=(1, 2)))
        self._hide_a_name(folder / "scans" / VICTIM)
        for name in (VICTIM, LIAR, STOCK):
            fedimaging(folder, f"site init {name} --name {name} --server 127.0.0.1:{self.port} --ca server/ca.crt "
                               f"--data ../scans/{name}")  # fmt: skip
            fedimaging(folder, f"server add-site server {name} {name}/keys/node.pub")
        self.site = SiteFolder.open(folder / VICTIM)
        self.set_policy(minimum_hospitals=1, in_total={"epsilon": 50.0, "delta": 1e-4}, per_year={"epsilon": 40.0, "delta": 1e-4})
        self.study = self.approved(study_tree("attacked"))
        self.second = self.approved(study_tree("honest") | {"seed": 4, "federation": {"rounds": 2}})
        self.tap: Tap

    def _hide_a_name(self, scans: Path) -> None:
        """One patient gets a name and a file name that can be searched for in all that leaves."""
        manifest = scans / "manifest.csv"
        lines = manifest.read_text().splitlines()
        image, patient = lines[1].split(",")[:2]
        (scans / image).rename(scans / SECRET_FILE)
        text = "\n".join(lines).replace(f"{image},", f"{SECRET_FILE},").replace(f",{patient},", f",{SECRET_PATIENT},")
        manifest.write_text(text + "\n")
        self.manifest, self.secret_scan = manifest, scans / SECRET_FILE

    def set_policy(self, **rules: Any) -> None:
        """As the hospital's people would, in their file."""
        tree = yaml.safe_load(self.site.policy_file.read_text())
        self.site.policy_file.write_text(yaml.safe_dump(tree | rules))

    def approved(self, tree: dict[str, Any]) -> Study:
        """Write the study at the server, and approve it at the hospital."""
        path = self.server.path / f"{tree['name']}.yaml"
        path.write_text(yaml.safe_dump(tree))
        fedimaging(self.folder, f"site approve {VICTIM} server/{path.name} --name 'Dr. A' --reason test --yes")
        return load(path)

    def __enter__(self) -> "Stage":
        self.start("server", "server", "start", "server")
        self.until(self.server.socket.exists, "the server's socket")
        self.tap = Tap(
            ("127.0.0.1", self.port), self.server.socket, self.server.ca, self.server.certificate, self.server.key)
        settings = yaml.safe_load(self.site.settings_file.read_text())
        self.site.settings_file.write_text(yaml.safe_dump(settings | {"server": f"127.0.0.1:{self.tap.port}"}))
        self.site = SiteFolder.open(self.folder / VICTIM)
        self.start("hospital", "site", "run", VICTIM)
        self.until(lambda: any(call.path.endswith("pull-messages") for call in self.tap.calls), "the hospital")
        return self

    def __exit__(self, *_: object) -> None:
        for name, process in reversed(self._running.items()):
            end(process)
            print(f"{name} ended with {process.returncode}", file=sys.stderr)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a command of fedimaging's; what it says goes to NAME.log."""
        return self.start_other(name, [sys.executable, "-m", "fedimaging.cli", *command])

    def start_other(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start any program."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=os.environ | environment, start_new_session=True)
        return self._running[name]

    @property
    def hospital(self) -> subprocess.Popen[bytes]:
        """The process under attack."""
        return self._running["hospital"]

    def until(self, done: Callable[[], bool], what: str, seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait. Error: TimeoutError."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}")
            time.sleep(0.05)

    def forget_peak(self) -> float:
        """Start the kernel's count of the hospital's largest memory anew; returns it, in MB."""
        Path(f"/proc/{self.hospital.pid}/clear_refs").write_text("5")
        return self._largest_mb()

    def _largest_mb(self) -> float:
        try:
            status = Path(f"/proc/{self.hospital.pid}/status").read_text()
        except OSError:
            return 0.0
        return next((int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)

    def events(self, first: int = 0) -> list[dict[str, Any]]:
        """The hospital's audit log, verified."""
        return audit_log.read(self.site.audit_file)[first:]

    def said_by(self, name: str) -> list[Call]:
        """The calls that a hospital's key signed, all of them, in order. Error: ValueError where there is none."""
        mark = base64.b64encode((self.folder / name / "keys" / "node.pub").read_bytes())
        calls = [call for call in list(self.tap.calls) if mark in call.headers]
        if not calls:
            raise ValueError(f"{name} made no call that was noted")
        return calls

    def look(self) -> Look:
        """Everything that an attack should leave as it was, and what it may change."""
        ledger = self.site.ledger()
        rows = len(ledger.rows())
        if self._epsilon[0] != rows:
            self._epsilon = (rows, epsilon(ledger.charges(), 1e-4))
        return Look(
            rows, self._epsilon[1], len(self.events()), frozenset(self._files()), self._largest_mb(), len(self.tap.calls),
            self.hospital.poll() is None)

    def _files(self) -> list[str]:
        theirs = self.server.path
        return [
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*")
            if path.is_file() and theirs not in path.parents and path.suffix != ".log"
        ]


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process to end; make it, where it does not. What it started ends with it."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
