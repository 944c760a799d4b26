"""Is the container's process 1 connected? `health.py joined`: it has a TCP connection to somebody, which for a hospital can
only be the server. `health.py listening`: it listens, as the server does. Exit code 0 for yes. Standard library only.

It says nothing that a restart would mend: a hospital that cannot reach the server goes on trying by itself.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

STATES = {"joined": "01", "listening": "0A"}
"""As Linux numbers them in /proc/net/tcp: ESTABLISHED and LISTEN."""


def own_sockets(process: Path) -> set[str]:
    """Inodes of the sockets that a process holds."""
    targets = (os.readlink(entry) for entry in (process / "fd").iterdir())
    return {target.removeprefix("socket:[").rstrip("]") for target in targets if target.startswith("socket:[")}


def sockets_in(process: Path, state: str) -> Iterator[str]:
    """Inodes of the TCP sockets in that state, of all that share the process's network."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (process / "net" / table).read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == state:
                yield fields[9]


def connected(process: Path, role: str) -> bool:
    """Whether the process has a connection as its role needs one."""
    return bool(own_sockets(process) & set(sockets_in(process, STATES[role])))


if __name__ == "__main__":
    sys.exit(0 if connected(Path("/proc/1"), sys.argv[1]) else 1)
