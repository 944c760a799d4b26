"""A server and some hospitals, each in a network namespace of its own: a cable from each hospital to a bridge at the server,
and no way to anywhere else. Needs root; without it `Loopback` puts all on 127.0.0.1, where no cable can be cut."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

SERVER = "10.77.0.1"


def run(*command: str) -> None:
    """Error: RuntimeError with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class Loopback:
    """Plain processes on this machine's loopback."""

    cables = False
    host, port = "127.0.0.1", 18443

    def inside(self, name: str) -> list[str]:
        """What to put before a command of this machine's."""
        return []


class Namespaces:
    """One namespace a name; "server" has the bridge. Everything is gone when the process is, or `close` is called."""

    cables = True
    host, port = SERVER, 8443

    def __init__(self, sites: Sequence[str]) -> None:
        self._names = {name: f"faults-{os.getpid()}-{name}" for name in ("server", *sites)}
        try:
            for name in self._names.values():
                run("ip", "netns", "add", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
            self._at("server", "link", "add", "bridge", "type", "bridge")
            self._at("server", "addr", "add", f"{SERVER}/24", "dev", "bridge")
            self._at("server", "link", "set", "bridge", "up")
            for place, site in enumerate(sites):
                self._connect(site, place)
        except BaseException:
            self.close()
            raise

    def _at(self, name: str, *command: str) -> None:
        run("ip", "-n", self._names[name], *command)

    def _connect(self, site: str, place: int) -> None:
        port = f"port{place}"
        run("ip", "link", "add", port, "netns", self._names["server"], "type", "veth", "peer", "name", "cable", "netns",
            self._names[site])  # fmt: skip
        self._at("server", "link", "set", port, "master", "bridge", "up")
        self._at(site, "addr", "add", self.address(site), "dev", "cable")
        self._at(site, "link", "set", "cable", "up")

    def address(self, site: str) -> str:
        """The hospital's own, with the width of the net."""
        return f"10.77.0.{10 + list(self._names).index(site)}/24"

    def inside(self, name: str) -> list[str]:
        """What to put before a command of this machine's."""
        return ["ip", "netns", "exec", self._names[name]]

    def pull_cable(self, site: str) -> None:
        """The hospital's machine sees at once that it has no network."""
        self._at(site, "link", "set", "cable", "down")

    def plug_cable(self, site: str) -> None:
        """The end of `pull_cable`."""
        self._at(site, "link", "set", "cable", "up")

    def swallow(self, site: str, yes: bool) -> None:
        """Drop every packet between hospital and server without a word, as a firewall does; or no longer."""
        change, source = "-A" if yes else "-D", self.address(site).partition("/")[0]
        run(*self.inside(site), "iptables", change, "INPUT", "-s", SERVER, "-j", "DROP")
        run(*self.inside("server"), "iptables", change, "INPUT", "-s", source, "-j", "DROP")

    def close(self) -> None:
        """Remove all of it."""
        for name in self._names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)


@contextlib.contextmanager
def network(sites: Sequence[str]) -> Iterator[Namespaces | Loopback]:
    """Namespaces where they can be made, else the loopback."""
    made: Namespaces | Loopback
    try:
        made = Namespaces(sites) if shutil.which("ip") else Loopback()
    except RuntimeError as error:
        print(f"no network namespaces here ({error}); plain processes on the loopback, and no cable to cut", flush=True)
        made = Loopback()
    try:
        yield made
    finally:
        if isinstance(made, Namespaces):
            made.close()
