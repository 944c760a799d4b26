"""Hosts on one machine: a network namespace each, on a bridge on which a hospital reaches the server and nobody else."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_BRIDGE = "fi-bridge"  # a namespace of its own: the machine's own network is not touched
_SUBNET = "10.215.78"
SERVER = f"{_SUBNET}.1"


def ip(*command: str) -> None:
    """One `ip` command. Error: CalledProcessError."""
    subprocess.run(["ip", *command], check=True)


def inside(host: str, command: Sequence[str]) -> list[str]:
    """The command, as it is run on a host."""
    return ["ip", "netns", "exec", f"fi-{host}", *command]


@contextlib.contextmanager
def network(server: str, hosts: Sequence[str], name: str) -> Iterator[None]:
    """A host for the server, which the others know by `name`, and one for each of `hosts`. None has a route out, and a
    hospital's packets reach the server's port of the bridge only. Needs root."""
    every = [server, *hosts]
    try:
        for namespace in (_BRIDGE, *(f"fi-{host}" for host in every)):
            ip("netns", "add", namespace)
        ip("-n", _BRIDGE, "link", "add", "bridge", "type", "bridge")
        ip("-n", _BRIDGE, "link", "set", "bridge", "up")
        for number, host in enumerate(every, start=1):
            _plug(host, number, isolated=host != server)
            names = Path("/etc/netns", f"fi-{host}")
            names.mkdir(parents=True)
            (names / "hosts").write_text(f"127.0.0.1 localhost\n{SERVER} {name}\n")
        yield
    finally:
        for namespace in (*(f"fi-{host}" for host in every), _BRIDGE):
            subprocess.run(["ip", "netns", "del", namespace], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(Path("/etc/netns", namespace), ignore_errors=True)


def _plug(host: str, number: int, *, isolated: bool) -> None:
    namespace, port = f"fi-{host}", f"port{number}"
    ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", _BRIDGE)
    ip("-n", namespace, "address", "add", f"{_SUBNET}.{number}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        ip("-n", namespace, "link", "set", device, "up")
    ip("-n", _BRIDGE, "link", "set", port, "master", "bridge", "up")
    if isolated:  # isolated ports of a bridge do not reach each other
        ip("-n", _BRIDGE, "link", "set", "dev", port, "type", "bridge_slave", "isolated", "on")


def can_be_made() -> bool:
    """Whether this process may make namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None
