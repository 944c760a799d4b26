"""The health check tells a process that is connected, or listens, from one that does not, by its own sockets only."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.scripts import script

_CHILD = """
import socket, sys
what, port = sys.argv[1], int(sys.argv[2])
kept = socket.create_connection(("127.0.0.1", port)) if what == "joined" else socket.socket()
if what == "listening":
    kept.listen()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a listener that belongs to this process, and to none that is looked at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("state", ["joined", "listening", "neither"])
def test_only_the_states_of_its_own_sockets_count(state: str, port: int) -> None:
    health = script("health")
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, state, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        process = Path("/proc", str(child.pid))
        assert {role: health.connected(process, role) for role in ("joined", "listening")} == {
            "joined": state == "joined", "listening": state == "listening",
        }  # fmt: skip
        child.communicate("")


def test_a_kernel_without_ipv6_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "fd").mkdir()
    (tmp_path / "fd" / "3").symlink_to("socket:[77]")
    (tmp_path / "fd" / "4").symlink_to("/dev/null")
    (tmp_path / "net").mkdir()
    line = "0: 0100007F:20FB 00000000:0000 {} 00000000:00000000 00:00000000 00000000 0 0 {} 1"
    for state, inode, joined in (("01", 77, True), ("01", 78, False), ("06", 77, False)):
        (tmp_path / "net" / "tcp").write_text(f"sl local rem st\n{line.format(state, inode)}\n")
        assert script("health").connected(tmp_path, "joined") is joined
