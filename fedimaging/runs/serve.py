"""`fedimaging server start` and `status`: the process that hospitals reach, and what its operator sees of it."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fedimaging.errors import LinkDown, LinkError, LinkRefused, RunError
from fedimaging.federated.flower_http import ControlLine, NodeState
from fedimaging.federated.superlink import Listeners, serve
from fedimaging.files import held
from fedimaging.keys import fingerprint
from fedimaging.runs.certificates import days_left
from fedimaging.runs.server_folder import ServerFolder
from fedimaging.site.audit_log import AuditLog


def start(folder: ServerFolder, say: Callable[[str], None]) -> None:
    """Run the server until SIGTERM. It can be killed and started again at any time: hospitals come back by themselves.

    Error: RunError where it runs already, or cannot listen.
    """
    settings = folder.settings
    listeners = Listeners(folder.socket, settings.listen, settings.port, folder.certificate, folder.key)
    os.environ["FLWR_HOME"] = str(folder.path / "flower")  # whatever Flower writes for itself, it writes here

    def ready() -> None:
        admit(folder)
        folder.audit("started", host=settings.host, port=settings.port)
        say(f"hospitals reach the server at {settings.host}:{settings.port}; listening on {settings.listen}.")
        say("commands reach it through a socket in its folder; nothing else answers.")

    with held(folder.path / ".start.lock", f"a server runs in {str(folder.path)!r} already; stop it first."):
        log = AuditLog(folder.path / "audit.jsonl")  # one for all strangers: it writes so many lines a minute and no more
        serve(listeners, folder.database, folder.secret, ready, lambda key: log.write("refused", code="unknown_key", key=key))
        folder.audit("stopped")


def admit(folder: ServerFolder) -> None:
    """Bring the running server's registered keys in line with sites.json. Error: LinkDown where none runs; RunError for a
    key that was shut out once."""
    control = ControlLine(folder.socket)
    try:
        with held(folder.path / ".admit.lock"):
            known = {node.public_key.decode("ascii", "replace"): node for node in control.nodes()}
            wanted = {site.key: name for name, site in folder.sites().items()}
            for key, node in known.items():
                if key not in wanted:
                    control.unregister(node.node_id)
            for key in wanted.keys() - known.keys():
                _register(control, key, wanted[key])
    finally:
        control.close()


def admit_if_running(folder: ServerFolder, say: Callable[[str], None]) -> None:
    """`admit`, and where no server runs say so: it does this itself when it starts."""
    try:
        admit(folder)
    except LinkDown:
        say("the server does not run now; it will know when it starts.")


def _register(control: ControlLine, key: str, name: str) -> None:
    try:
        control.register(key.encode("ascii"), name)
    except LinkRefused:
        raise RunError(
            f"the key of site {name!r} was removed once, and the server never admits it again; let the hospital make a new "
            "key, and add that."
        ) from None


def nodes_by_site(folder: ServerFolder, nodes: Iterable[NodeState]) -> dict[str, NodeState]:
    """The registered nodes by the name that sites.json gives to their key: what a node says of itself does not count."""
    names = {site.key: name for name, site in folder.sites().items()}
    found = {names.get(node.public_key.decode("ascii", "replace")): node for node in nodes}
    return {name: node for name, node in found.items() if name is not None}


@dataclass(frozen=True)
class SiteStatus:
    """One hospital as its operator sees it; `online` None: the server does not run."""

    name: str
    fingerprint: str
    patients: int | None
    online: bool | None
    since: str


@dataclass(frozen=True)
class Status:
    """What `fedimaging server status` tells. `runs`: (folder, what it has)."""

    running: bool
    address: str
    certificate_days: int
    sites: tuple[SiteStatus, ...]
    runs: tuple[tuple[str, str], ...]


def status(folder: ServerFolder) -> Status:
    """Look at the folder and, where it runs, at the server."""
    nodes: dict[str, NodeState] | None = None
    control = ControlLine(folder.socket)
    try:
        nodes = nodes_by_site(folder, control.nodes())
    except LinkError:
        pass  # told as not running
    finally:
        control.close()
    sites = []
    for name, site in folder.sites().items():
        node = None if nodes is None else nodes.get(name)
        online = None if nodes is None else node is not None and node.online
        sites.append(SiteStatus(name, fingerprint(site.key), site.patients, online, node.activated if node else ""))
    settings = folder.settings
    runs = tuple((path.name, _run_words(path)) for path in sorted((folder.path / "runs").glob("*/")))
    return Status(nodes is not None, f"{settings.host}:{settings.port}", days_left(folder.certificate), tuple(sites), runs)


def _run_words(path: Path) -> str:
    """How far a run is. Read without RunDir, which would load torch into the server's process."""
    rounds = path / "rounds.jsonl"
    done = len(set(re.findall(r'^{"round": (\d+),', rounds.read_text(encoding="utf-8"), re.M))) if rounds.exists() else 0
    return f"finished after {done} rounds" if (path / "report.json").exists() else f"{done} rounds done"


def as_lines(found: Status) -> list[str]:
    """The status in words, a line each."""
    lines = [
        f"server at {found.address}: {'running' if found.running else 'not running (fedimaging server start)'}; "
        f"its certificate is valid for {found.certificate_days} more days",
    ]
    for site in found.sites:
        here = {None: "unknown", True: f"joined {site.since[:19]}Z", False: "not connected"}[site.online]
        patients = "" if site.patients is None else f", {site.patients} patients declared"
        lines.append(f"  {site.name}: {here}; key {site.fingerprint}{patients}")
    return [*lines, *(f"  run {name}: {words}" for name, words in found.runs)]
