"""The hospital's image, built by the very lines of container/README.md, and one container of it, confined as the systemd unit
says and by podman itself."""

import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/fedimaging-site"
NEEDED = ("buildah", "mmdebstrap", "podman", "runc", "ip", "unshare")
_ENOUGH = 4096  # open files, and processes
_NOT_COPIED = (".*", "base.tar", "wheels", "federation", "__pycache__", "results")


class NoWheels(Exception):
    """pip cannot get a wheel that is pinned."""


def missing() -> str:
    """Why this machine can't build and run it; empty where it can."""
    absent = [program for program in NEEDED if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian has packages of them)"
    if os.geteuid() != 0:
        return "only root may make network namespaces and root filesystems here"
    if sys.version_info[:2] != (3, 11) or os.uname().machine != "x86_64":
        return "the wheels are pinned for Python 3.11 on x86-64"
    return ""


def documented(target: str = "site") -> list[str]:
    """The README's commands from nothing to the image of this target, in order."""
    text = (ROOT / "container" / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"^## Build\n.*?^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[0]
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line]
    return [line for line in lines if "--target" not in line or f"--target {target} " in line]


def confinement() -> list[str]:
    """The flags of `podman run` that confine a hospital's container, as the systemd unit has them."""
    unit = (ROOT / "container" / "fedimaging-site.service").read_text(encoding="utf-8")
    return shlex.split(next(line for line in unit.splitlines() if "--read-only " in line).rstrip("\\"))


class Engine:
    """buildah and podman with all their storage in `folder`, where neither systemd nor anybody's images are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.driver = folder, "overlay"
        folder.mkdir()
        if subprocess.run(["buildah", "info"], env=self.environment(), capture_output=True).returncode:
            self.driver = "vfs"  # copies each layer: slow, but any file system will do

    def environment(self) -> dict[str, str]:
        """What both programs are told, and a PATH whose python3 is this Python."""
        storage, engine = self.folder / "storage.conf", self.folder / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "{self.driver}"\ngraphroot = "{self.folder}/{self.driver}"\nrunroot = "{self.folder}/run"\n')
        engine.write_text(
            f'[containers]\ndefault_ulimits = ["{_limit("nofile", resource.RLIMIT_NOFILE)}", '
            f'"{_limit("nproc", resource.RLIMIT_NPROC)}"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n')
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return os.environ | {"CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(engine), "PATH": path}

    def build(self, copy: Path) -> dict[str, float]:
        """Run the README's lines in a copy of the repository. Returns seconds by program. Errors: NoWheels, SystemExit."""
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        shutil.copy(ROOT / "container" / ".dockerignore", copy / "container")
        where, took = copy, dict[str, float]()
        for line in documented():
            if line.startswith("cd "):
                where = where / line.removeprefix("cd ")
                continue
            began = time.monotonic()
            done = subprocess.run(line, shell=True, cwd=where, env=self.environment(), capture_output=True, text=True)
            if done.returncode and "No matching distribution found" in done.stderr:
                raise NoWheels(f"pip's configuration has no index with {done.stderr.strip().splitlines()[-1].split()[-1]}")
            if done.returncode:
                raise SystemExit(f"{line}\nexit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
            name = next(word for word in ("mmdebstrap", "download", "wheel", "buildah") if word in line)
            took[name] = time.monotonic() - began
        return took

    def size(self) -> int:
        """The image's bytes, unpacked."""
        return int(self.podman("image", "inspect", "--format", "{{.Size}}", IMAGE).stdout)

    def podman(self, *command: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        """One podman command. Error: SystemExit where it fails, unless it may (`fails`)."""
        done = subprocess.run(["podman", *command], env=self.environment(), capture_output=True, text=True, timeout=300)
        if done.returncode and not fails:
            raise SystemExit(f"podman {shlex.join(command)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done


def _limit(name: str, number: int) -> str:
    """What this process may have, but not more than a node needs: the programs' own default is more than a root who is
    confined may set."""
    hard = resource.getrlimit(number)[1]
    least = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    return f"{name}={least}:{least}"


@dataclass(frozen=True)
class Container:
    """A hospital's container in a network namespace: `site` is its one writable folder, `scans` what it may read."""

    engine: Engine
    name: str
    namespace: str
    site: Path
    scans: Path

    def run(self) -> None:
        """Make and start it."""
        volumes = ("--volume", f"{self.site}:/site", "--volume", f"{self.scans}:/scans/{self.scans.name}:ro")
        network = ("--network", f"ns:/run/netns/{self.namespace}")
        self.engine.podman("run", "--detach", "--name", self.name, *network, *confinement(), *volumes, IMAGE)

    def does(self, command: Sequence[str], *, user: int | None = None) -> str:
        """What a command inside it prints. Error: SystemExit where the command fails."""
        given = () if user is None else ("--user", str(user))
        return self.engine.podman("exec", *given, self.name, *command).stdout

    def healthy(self) -> bool:
        """What the image's own health check says."""
        return self.engine.podman("healthcheck", "run", self.name, fails=True).returncode == 0

    def inspect(self, template: str) -> str:
        """A field of `podman inspect`."""
        return self.engine.podman("inspect", "--format", template, self.name).stdout.strip()

    def stop(self) -> float:
        """SIGTERM, and SIGKILL after two minutes; seconds until it had ended."""
        began = time.monotonic()
        self.engine.podman("stop", "--time", "120", self.name)
        return time.monotonic() - began
