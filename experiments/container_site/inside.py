"""Run inside the container, with the standard library: what can be done there, as JSON. The argument is the server's address.

    written    the folders in which a file could be made, of all there are    tried   how many folders there are
    status     lines of /proc/1/status that say as whom the node runs
    listening  sockets in LISTEN, or UDP                                       peers   to whom TCP connections are open
    reached    per address: "connected", or the error
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

ELSEWHERE = {"another address": ("192.0.2.1", 443), "a name": ("example.org", 443)}
SAID = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")


def folders() -> list[str]:
    """Every folder of every mount but the kernel's own."""
    found = []
    for folder, below, _ in os.walk("/"):
        if folder == "/":
            below[:] = [name for name in below if name not in {"proc", "sys"}]
        found.append(folder)
    return found


def writable(folder: str) -> bool:
    """Whether a file can be made in it."""
    path = Path(folder, ".probe")
    try:
        path.touch()
    except OSError:
        return False
    path.unlink()
    return True


def sockets(server: str) -> tuple[int, list[str]]:
    """How many sockets wait for somebody, and the peers of the connections, as "the server's" or their address in hex."""
    own = "".join(f"{int(part):02X}" for part in reversed(server.split(".")))
    waiting, peers = 0, []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, _, peer, state = line.split()[:4]
            waiting += state == "0A" or table.startswith("udp")
            if state == "01":
                peers.append("the server" if peer.startswith(own) else peer)
    return waiting, peers


def reach(address: tuple[str, int]) -> str:
    """Whether a TCP connection can be made."""
    try:
        socket.create_connection(address, 3).close()
    except OSError as error:
        return str(error.strerror or error)
    return "connected"


def look(server: str, port: int) -> dict[str, Any]:
    """All of it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/1/status").read_text().splitlines())
    tried = folders()
    waiting, peers = sockets(server)
    addresses = {"the server": (server, port), "another port of the server": (server, 22), **ELSEWHERE}
    return {
        "status": {name: lines[name].split() for name in SAID}, "tried": len(tried),
        "written": [folder for folder in tried if writable(folder)], "listening": waiting, "peers": peers,
        "reached": {name: reach(address) for name, address in addresses.items()},
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1], int(sys.argv[2]))))
