"""The rest of the federation: a host for the server and three hospitals, a host for the container, and a cable between them."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from image import ROOT

OTHERS, SITE = f"fi-others-{os.getpid()}", f"fi-container-{os.getpid()}"
SERVER, PORT = "10.215.79.1", 8443
_OWN = "10.215.79.2"


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """Two network namespaces. From `SITE` there is one route, to the server's address. Needs root."""
    ends = ((OTHERS, SERVER, _OWN), (SITE, _OWN, SERVER))
    try:
        for host, _, _ in ends:
            _ip("netns", "add", host)
        _ip("-n", OTHERS, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", SITE)
        for host, own, other in ends:
            _ip("-n", host, "address", "add", own, "peer", other, "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host, "link", "set", device, "up")
        yield
    finally:
        for host, _, _ in ends:
            subprocess.run(["ip", "netns", "del", host], check=False, stderr=subprocess.DEVNULL)


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True)


@dataclass
class Federation:
    """Server and hospitals as container/demonstration.py lays them out; what is started is ended by `end`. `xrays`: the folder of
    the chest X-rays, for the federation of experiments/deployment with the container as its fourth hospital."""

    folder: Path
    rounds: int
    xrays: Path | None = None
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def lay_out(self) -> None:
        """Keys, registration, approvals, scans. Error: SystemExit."""
        if self.xrays is not None:
            self._lay_out_xrays(self.xrays)
            return
        script = [sys.executable, str(ROOT / "container" / "demonstration.py"), str(self.folder)]
        done = subprocess.run([*script, "--host", SERVER, "--rounds", str(self.rounds)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _lay_out_xrays(self, source: Path) -> None:
        sys.path += [str(ROOT / "container"), str(ROOT / "experiments" / "deployment")]
        from demonstration import found
        from people import REGIONS, give_data

        study = yaml.safe_load((ROOT / "experiments" / "deployment" / "study.yaml").read_text(encoding="utf-8"))
        study["hospitals"]["sites"] = [f"hospital_{place:02d}" for place in range(1, len(REGIONS) + 1)]
        study["federation"]["rounds"] = self.rounds
        for name, regions in zip(study["hospitals"]["sites"], REGIONS.values(), strict=True):
            give_data(source, self.folder / "scans" / name, name, regions)
        found(self.folder, SERVER, study)

    def start(self, name: str, *command: str) -> None:
        """A plain process of this Python on the others' host."""
        words = ["ip", "netns", "exec", OTHERS, sys.executable, "-m", "fedimaging.cli", *command]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(words, cwd=self.folder, stdout=log, stderr=log)

    def until(self, done: Callable[[], bool], what: str, seconds: float = 600.0) -> None:
        """Wait. Error: SystemExit where it takes longer, or the run has failed."""
        end = time.monotonic() + seconds
        while not done():
            failed = "run" in self.running and self.running["run"].poll() not in (None, 0)
            if failed or time.monotonic() > end:
                raise SystemExit(f"in vain: {what}\n{self.logs()}")
            time.sleep(0.1)

    def rounds_done(self) -> list[dict[str, object]]:
        """The rounds as the server's run folder has them."""
        found = list(self.folder.glob("server/runs/*/rounds.jsonl"))
        lines = found[0].read_text(encoding="utf-8").splitlines() if found else []
        return list({row["round"]: row for row in map(json.loads, lines)}.values())

    def joined(self, name: str) -> bool:
        """Whether the server says that it has this hospital."""
        words = [sys.executable, "-m", "fedimaging.cli", "server", "status", str(self.folder / "server")]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return any(line.strip().startswith(f"{name}: joined") for line in told.splitlines())

    def logs(self) -> str:
        """The end of what each process printed."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """SIGTERM to all, and wait."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
