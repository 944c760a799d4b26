"""The hospital's container for real: built without network, confined, the fourth hospital of a federation of plain processes.

    python experiments/container_site/run.py        (as root)

Prints a line for each promise with what was seen, and writes results/table.md. Exit code 1 where one does not hold.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation import PORT, SERVER, SITE, Federation, hosts
from image import IMAGE, Container, Engine, NoWheels, missing

NAME = "hospital_04"
HERE = Path(__file__).parent
LARGEST = 2e9  # bytes
HEAD = ("| line | what | seen | holds |", "|---|---|---|---|")
MEMORY = ("/dev",)  # tmpfs of the engine's, gone with the container
CENSUS = """
import json, os, pathlib
inside = [(folder, names) for folder, _, names in os.walk("/") if not folder.startswith(("/proc", "/sys"))]
files = [pathlib.Path(folder, name) for folder, names in inside for name in names]
print(json.dumps({
    "setuid": [str(file) for file in files if not file.is_symlink() and file.stat().st_mode & 0o6000],
    "tools": [str(file) for file in files if file.name in {"pip", "pip3", "apt-get", "gcc", "cc", "curl", "wget", "uv"}]}))
"""


@dataclass(frozen=True)
class Line:
    """One promise, what was seen, and whether it holds."""

    what: str
    seen: str
    holds: bool


def image_lines(engine: Engine, folder: Path) -> Iterator[Line]:
    """Build it, and look at it while nothing runs in it."""
    took = engine.build(folder / "copy")
    beside = folder / "copy" / "container"
    wheels = [wheel.stat().st_size for wheel in (beside / "wheels").glob("*.whl")]
    base, size = (beside / "base.tar").stat().st_size, engine.size()
    seen = (
        f"{size / 1e9:.2f} GB in {took['buildah']:.0f} s, of a base of {base / 1e6:.0f} MB ({took['mmdebstrap']:.0f} s) and "
        f"{len(wheels)} wheels of {sum(wheels) / 1e6:.0f} MB ({took['download'] + took['wheel']:.0f} s)")
    yield Line("image, built with no network", seen, size <= LARGEST)
    python = ("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "python", IMAGE)
    found = json.loads(engine.podman(*python, "-c", CENSUS).stdout)
    seen = f"{found['setuid'] or 'none'}; {found['tools'] or 'none'}"
    yield Line("setuid programs; pip, apt, a compiler, curl", seen, not found["setuid"] and not found["tools"])


def confined_lines(box: Container) -> Iterator[Line]:
    """What process 1 may do, and what somebody inside could."""
    script = (HERE / "inside.py").read_text(encoding="utf-8")
    seen: dict[str, Any] = json.loads(box.does(["python", "-c", script, SERVER, str(PORT)]))
    status = {name: " ".join(dict.fromkeys(words)) for name, words in seen["status"].items()}
    none = all(int(status[name], 16) == 0 for name in status if name.startswith("Cap"))
    yield Line("runs as", f"uid {status['Uid']}, gid {status['Gid']}", status["Uid"] == status["Gid"] == "10001")
    text = f"capabilities {'none' if none else 'SOME'}, no_new_privs {status['NoNewPrivs']}, seccomp {status['Seccomp']}"
    yield Line("may", text, none and (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"))
    yield _writing("10001", seen, ("/site", *MEMORY))
    yield _writing("root", json.loads(box.does(["python", "-c", script, SERVER, str(PORT)], user=0)), MEMORY)
    yield Line("sockets that wait for somebody", str(seen["listening"]), seen["listening"] == 0)
    yield Line("connections", ", ".join(sorted(set(seen["peers"]))), set(seen["peers"]) == {"the server"})
    for what, answer in seen["reached"].items():
        yield Line(f"reaches {what}", answer, (answer == "connected") == (what == "the server"))


def _writing(user: str, seen: dict[str, Any], allowed: tuple[str, ...]) -> Line:
    """Folders in which `user` can make a file: none but the allowed ones and what is below them."""
    tops = sorted({"/" + "/".join(path.split("/")[1:3 if path.startswith("/dev/") else 2]) for path in seen["written"]})
    fine = all(any(path == top or path.startswith(f"{top}/") for top in allowed) for path in seen["written"])
    return Line(f"of {seen['tried']} folders, a file can be made by {user} in", f"{', '.join(tops)} and below", fine)


def federation_lines(box: Container, federation: Federation) -> Iterator[Line]:
    """It waits for a server, joins, is stopped in the middle, comes back, and trains to the end."""
    box.run()
    federation.until(lambda: "Errno" in _printed(box) or "cannot be reached" in _printed(box), "it says that no server is there")
    running = box.inspect("{{.State.Running}}")
    yield Line("no server yet: runs on; healthy", f"{running}; {box.healthy()}", running == "true" and not box.healthy())
    _start_others(federation)
    federation.until(lambda: federation.joined(NAME), "joined")
    healthy = box.healthy()
    yield Line("the server says that it has joined; healthy", str(healthy), healthy)
    federation.until(lambda: len(federation.rounds_done()) >= 2, "two rounds")
    yield from confined_lines(box)
    yield _stopped(box, federation)
    box.engine.podman("start", box.name)
    federation.until(lambda: federation.running["run"].poll() == 0, "the run's end")
    yield from _end_lines(box, federation)


def _start_others(federation: Federation) -> None:
    federation.start("start", "server", "start", "server")
    for site in sorted(federation.folder.glob("hospital_*/")):
        if site.name != NAME:
            federation.start(site.name, "site", "run", site.name)
    federation.start("run", "server", "run", "server", "server/study.yaml")


def _printed(box: Container) -> str:
    told = box.engine.podman("logs", box.name)
    return told.stdout + told.stderr


def _stopped(box: Container, federation: Federation) -> Line:
    done, seconds = len(federation.rounds_done()), box.stop()
    code, there = box.inspect("{{.State.ExitCode}}"), federation.joined(NAME)
    last = json.loads((box.site / "audit.jsonl").read_text(encoding="utf-8").splitlines()[-1])["event"]
    text = f"ended after {seconds:.1f} s with code {code}; its log: {last}; server: {'joined' if there else 'not connected'}"
    return Line(f"SIGTERM after round {done} of {federation.rounds}", text, (code, last, there) == ("0", "node_stopped", False))


def _end_lines(box: Container, federation: Federation) -> Iterator[Line]:
    (run,) = federation.folder.glob("server/runs/*")
    rounds = federation.rounds_done()
    took_part = sum(NAME in str(row["sites"]) for row in rounds)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    fine = len(rounds) == took_part == federation.rounds and len(report["sites"]) == 4 and (run / "report.html").exists()
    text = f"{len(rounds)} rounds, {took_part} with the container; report of {len(report['sites'])} hospitals"
    yield Line("started again: trained to the end", text, fine)
    for what, module, files in (("ledger", "fedimaging.privacy.ledger_verify", ("ledger.sqlite", "ledger.head")),
                                ("log", "fedimaging.site.verify_log", ("audit.jsonl",))):  # fmt: skip
        told = box.does(["python", "-m", module, *(f"/site/{file}" for file in files)])
        yield Line(f"its {what}, verified inside it", " ".join(told.split()), True)


def show(folder: Path, rounds: int, xrays: Path | None) -> Iterator[Line]:
    """Every line, in a folder that is not there yet."""
    folder.mkdir()
    engine, federation = Engine(folder / "engine"), Federation(folder / "federation", rounds, xrays)
    yield from image_lines(engine, folder)
    federation.lay_out()
    site, scans = federation.folder / NAME, federation.folder / "scans" / NAME
    scans.chmod(0o777)  # so that it is the mount that keeps the container from writing
    for path in (site, *site.rglob("*")):
        os.chown(path, 10001, 10001)
    box = Container(engine, f"fedimaging-{os.getpid()}", SITE, site, scans)
    with hosts():
        try:
            yield from federation_lines(box, federation)
        finally:
            engine.podman("rm", "--force", "--time", "10", "--ignore", box.name)
            federation.end()


def main() -> None:
    """Show, print, and write the table. Exit codes: 1 where a line does not hold, 2 where this machine cannot, 3 without
    wheels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--data", type=Path, help="the shared images: real X-rays, as in experiments/deployment")
    given = parser.parse_args()
    xrays = given.data.resolve() / "cxr_multisite" if given.data else None
    if why := missing():
        print(f"cannot be shown here: {why}", file=sys.stderr)
        sys.exit(2)
    print(*HEAD, sep="\n")
    lines = []
    try:
        with tempfile.TemporaryDirectory(prefix="fedimaging-container-") as work:
            for line in show(Path(work, "shown"), given.rounds, xrays):
                lines.append(line)
                print(row(len(lines), line), flush=True)
    except NoWheels as error:
        print(f"cannot be shown here: {error}", file=sys.stderr)
        sys.exit(3)
    keep(lines, given.results)
    sys.exit(0 if all(line.holds for line in lines) else 1)


def keep(lines: list[Line], folder: Path) -> None:
    """Write the table."""
    folder.mkdir(exist_ok=True)
    about = f"{datetime.date.today()}, {os.cpu_count()} shared cores, CPU, Python {platform.python_version()}"
    table = [about, "", *HEAD, *(row(number, line) for number, line in enumerate(lines, start=1))]
    (folder / "table.md").write_text("\n".join(table) + "\n", encoding="utf-8")


def row(number: int, line: Line) -> str:
    """The line as Markdown."""
    return f"| {number} | {line.what} | {line.seen} | {'yes' if line.holds else 'NO'} |"


if __name__ == "__main__":
    main()
