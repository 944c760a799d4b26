"""Round time on loopback: Flower's own set-up beside ours, the same echo app on both, in turn.

    python experiments/wire_cost/run.py [--megabytes 0.01 30] [--rounds 6] [--hospitals 3]
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

HERE = Path(__file__).parent
STOCK_PORT, OURS_PORT = 18700, 18701
BIN = Path(sys.executable).parent


@contextlib.contextmanager
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Children that are ended, by name or not, when the block is left."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        yield children
    finally:
        for child in reversed(children):
            child.terminate()
        for child in children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


def environment(home: Path) -> dict[str, str]:
    """No telemetry, no update check, no package installed at run time, a home of its own."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """What a process has used so far, without its children."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stock(folder: Path, megabytes: float, rounds: int, hospitals: int) -> tuple[list[float], float]:
    """Flower as its documentation deploys it: TLS, registered keys, SQLite, apps in processes of their own."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key

    from fedimaging.runs.certificates import issue, make_authority

    folder.mkdir()
    make_authority(folder / "ca.crt", folder / "ca.key")
    issue("127.0.0.1", folder / "ca.crt", folder / "ca.key", folder / "server.crt", folder / "server.key")
    variables, address, out = environment(folder / "home"), f"127.0.0.1:{STOCK_PORT}", folder / "seconds.json"
    text = f'[superlink]\ndefault = "dep"\n[superlink.dep]\naddress = "{address}"\nroot-certificates = "{folder}/ca.crt"\n'
    (folder / "home" / "config.toml").write_text(text)

    def start(name: str, *command: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("w") as log:
            return subprocess.Popen([str(BIN / command[0]), *command[1:]], env=variables, stdout=log, stderr=log)

    def flwr(*command: str) -> None:
        for turn in range(10):  # the server may not be up yet
            done = subprocess.run([str(BIN / "flwr"), *command], env=variables, capture_output=True, text=True, timeout=120)
            if done.returncode == 0:
                return
            time.sleep(turn)
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    with processes() as children:
        server = start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", str(STOCK_PORT), "--ssl-ca-certfile",
            f"{folder}/ca.crt", "--ssl-certfile", f"{folder}/server.crt", "--ssl-keyfile", f"{folder}/server.key",
            "--enable-supernode-auth", "--database", f"{folder}/state.db")
        children.append(server)
        for k in range(hospitals):
            key = generate_private_key(SECP384R1())
            (folder / f"h{k}").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            (folder / f"h{k}.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
            flwr("supernode", "register", f"{folder}/h{k}.pub", "dep")
            children.append(start(
                f"h{k}", "flower-supernode", "--superlink", address, "--root-certificates", f"{folder}/ca.crt",
                "--auth-supernode-private-key", f"{folder}/h{k}", "--host", "127.0.0.1", "--port", str(STOCK_PORT + 10 + k)))
        before = cpu_seconds(server)
        flwr("run", str(HERE / "stock"), "dep", "-c",
             f'megabytes={megabytes} rounds={rounds} hospitals={hospitals} out="{out}"')
        until = time.monotonic() + 60 * rounds + 120
        while not out.exists() and time.monotonic() < until:
            time.sleep(0.5)
        seconds = json.loads(out.read_text())
        return seconds, (cpu_seconds(server) - before) / rounds


def ours(folder: Path, megabytes: float, rounds: int, hospitals: int) -> tuple[list[float], float]:
    """Our server and pinned runners."""
    sys.path.insert(0, str(HERE / "stock"))
    from echo.apps import timed_rounds
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    from fedimaging.errors import LinkDown
    from fedimaging.federated.deployed_grid import Deployment, run_deployed
    from fedimaging.keys import make_key
    from fedimaging.runs.serve import admit
    from fedimaging.runs.server_folder import ServerFolder, ServerSettings

    made = ServerFolder.create(folder, ServerSettings(host="127.0.0.1", port=OURS_PORT, listen="127.0.0.1"))
    variables, seconds = environment(folder / "home"), list[float]()
    with processes() as children, (folder / "log").open("w") as log:
        for k in range(hospitals):
            make_key(folder / f"h{k}", folder / f"h{k}.pub")
            made.add_site(f"hospital {k}", folder / f"h{k}.pub", None)
        command = [sys.executable, "-m", "fedimaging.cli", "server", "start", str(folder)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        children.append(server)
        for _ in range(100):
            try:
                admit(made)
                break
            except LinkDown:
                time.sleep(0.2)
        for k in range(hospitals):
            command = [sys.executable, str(HERE / "hospital.py"), f"hospital {k}", f"127.0.0.1:{OURS_PORT}", str(made.ca)]
            children.append(subprocess.Popen([*command, str(folder / f"h{k}")], env=variables, stdout=log, stderr=log))
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            seconds.extend(timed_rounds(grid, megabytes, rounds, hospitals))

        before = cpu_seconds(server)
        at = Deployment(made.socket, made.secret, made.path, made.path / "flower_run")
        run_deployed(app, at, largest_reply=64 * 2**20, say=print)
        return seconds, (cpu_seconds(server) - before) / rounds


def main() -> None:
    """Both set-ups in turn for every size; one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[0.01, 30.0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--hospitals", type=int, default=3)
    asked = parser.parse_args()
    print(f"{asked.hospitals} hospitals, {asked.rounds} rounds, {os.cpu_count()} cores")
    print("| model | set-up | first round | later rounds, median (least to most) | server's CPU a round |\n|---|---|---|---|---|")
    for megabytes in asked.megabytes:
        for name, measure in (("Flower's own", stock), ("ours", ours)):
            with tempfile.TemporaryDirectory() as temporary:
                seconds, cpu = measure(Path(temporary) / "f", megabytes, asked.rounds, asked.hospitals)
            first, later = seconds[0], seconds[1:]
            middle = f"{statistics.median(later):.2f} s ({min(later):.2f} to {max(later):.2f})"
            print(f"| {megabytes:g} MB | {name} | {first:.2f} s | {middle} | {cpu:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
