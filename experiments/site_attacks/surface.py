"""What answers from outside: every TCP port of the server's address, and every call that Flower knows, tried from another
network namespace. Needs root, for `ip netns`. See README.md."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from stage import end, free_port

from container.demonstration import fedimaging
from fedimaging.keys import make_key

HERE = Path(__file__).parent
INSIDE, OUTSIDE = "10.213.77.1", "10.213.77.2"
_SERVER_SPACE, _STRANGER_SPACE = "fedsrv", "fedout"


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


@contextmanager
def two_networks() -> Iterator[None]:
    """The server's network and a stranger's, joined by one cable; nothing else is in either."""
    _ip(f"netns add {_SERVER_SPACE}")
    try:
        _ip(f"netns add {_STRANGER_SPACE}")
        _ip(f"link add fedcable netns {_SERVER_SPACE} type veth peer name fedcable netns {_STRANGER_SPACE}")
        for space, address in ((_SERVER_SPACE, INSIDE), (_STRANGER_SPACE, OUTSIDE)):
            _ip(f"-n {space} address add {address}/24 dev fedcable")
            _ip(f"-n {space} link set fedcable up")
            _ip(f"-n {space} link set lo up")
        yield
    finally:
        for space in (_SERVER_SPACE, _STRANGER_SPACE):
            subprocess.run(["ip", "netns", "delete", space], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def running_server(folder: Path) -> Iterator[int]:
    """A real server in its network, with one registered hospital; yields its port."""
    port = free_port()
    fedimaging(folder, f"server init server --host {INSIDE} --port {port}")
    for name in ("registered", "stranger"):
        make_key(folder / f"{name}.key", folder / f"{name}.pub")
    fedimaging(folder, "server add-site server hospital_01 registered.pub")
    with (folder / "server.log").open("wb") as log:
        command = ["ip", "netns", "exec", _SERVER_SPACE, sys.executable, "-m", "fedimaging.cli", "server", "start", "server"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        yield port
    finally:
        end(process)


def from_outside(folder: Path, port: int) -> dict[str, list[list[str]]]:
    """Let the stranger's network look at the server; what he found."""
    command = ["ip", "netns", "exec", _STRANGER_SPACE, sys.executable, str(HERE / "knock.py"), INSIDE, str(port), str(folder)]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=500)
    tree: dict[str, list[list[str]]] = json.loads(found.stdout)
    return tree


def by_another_user(folder: Path) -> list[list[str]]:
    """Another user of the server's own machine tries the operator's socket."""
    code = f"import os, socket; os.setuid(65534); socket.socket(socket.AF_UNIX).connect({str(folder / 'server' / 'api.sock')!r})"
    folder.chmod(0o755)
    found = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    got = found.stderr.strip().splitlines()[-1].split(":")[0] if found.returncode else "connected"
    mode = oct((folder / "server" / "api.sock").stat().st_mode & 0o777)
    return [["connect to the operator's socket as nobody", "PermissionError", got], ["its mode", "0o600", mode]]


def table(found: dict[str, list[list[str]]]) -> tuple[list[str], int]:
    """Lines of the table, and how many rows do not hold. Rows of one kind with one outcome are one line."""
    lines, failed = ["| tried | expected | got | verdict |", "|---|---|---|---|"], 0
    for kind, rows in found.items():
        bad = [row for row in rows if row[1] != row[2]]
        failed += len(bad)
        if kind.startswith("*"):
            answers = ", ".join(f"{got} × {n}" if n > 1 else got for got, n in Counter(row[2] for row in rows).items())
            lines.append(f"| {kind[1:]} ({len(rows)}) | {rows[0][1]} | {answers} | {'**FAILS**' if bad else 'holds'} |")
            rows = bad
        lines += [f"| {row[0]} | {row[1]} | {row[2]} | {'**FAILS**' if row in bad else 'holds'} |" for row in rows]
    return lines, failed


def main() -> int:
    """Look, print, write results/. Exit code 1 where something answers that must not."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    with tempfile.TemporaryDirectory(prefix="surface") as name, two_networks():
        folder = Path(name)
        with running_server(folder) as port:
            _until((folder / "server" / "api.sock").exists)
            found = from_outside(folder, port) | {"another user": by_another_user(folder)}
    lines, failed = table(found)
    text = "\n".join(lines)
    print(f"{text}\n\n{sum(map(len, found.values()))} tries, {failed} fail")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "surface.md").write_text(text + "\n", encoding="utf-8")
    return 1 if failed else 0


def _until(done: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 90
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("the server did not start within 90 s")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
