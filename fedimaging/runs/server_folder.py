"""The operator's folder of a federation: certificates, the hospitals' keys, the server's database, log and runs.

    server.yaml        host, port, …            ca.crt, ca.key         the federation's authority
    sites.json         hospitals and keys       server.crt, server.key for the public listener
    audit.jsonl        what happened            superexec.secret       who may act as a run's ServerApp
    runs/              one folder a study       state.db               Flower's; can be deleted while nothing runs
"""

import json
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from fedimaging.errors import RunError, bad_value, unknown_name
from fedimaging.files import held, write_json, write_text
from fedimaging.keys import fingerprint, read_public, write_private
from fedimaging.runs.certificates import issue, make_authority
from fedimaging.site.audit_log import AuditLog
from fedimaging.spec import Spec
from fedimaging.study.load import read_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


class ServerSettings(Spec):
    """server.yaml. `host`, `port`: where hospitals reach the server, as its certificate says; `listen`: the address of this
    machine that it listens on. An update of a greater norm than `maximum_update_norm` is refused."""

    host: str
    port: int = Field(8443, ge=1, le=65535)
    listen: str = "0.0.0.0"
    maximum_update_norm: float = Field(1e4, gt=0)


class RegisteredSite(Spec):
    """A hospital: its public key (PEM), and how many patients it says publicly that it has, where a study weights by it."""

    key: str
    patients: int | None = Field(None, ge=1)
    added: str


@dataclass(frozen=True)
class ServerFolder:
    """An operator's folder that `create` has made."""

    path: Path
    settings: ServerSettings

    @classmethod
    def create(cls, path: Path, settings: ServerSettings) -> "ServerFolder":
        """Make authority, certificate, secret and settings in a new or empty folder. Error: RunError."""
        if path.exists() and any(path.iterdir()):
            raise RunError(f"folder {str(path)!r} is not empty; choose a new one for the server.")
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        folder = cls(path.resolve(), settings)
        make_authority(folder.ca, folder.path / "ca.key")
        folder.renew()
        write_private(folder.path / "superexec.secret", secrets.token_bytes(32))
        write_json(folder.path / "sites.json", {})
        write_text(folder.path / "server.yaml", yaml.safe_dump(settings.model_dump(), sort_keys=False))
        folder.audit("created", host=settings.host, port=settings.port)
        return folder

    @classmethod
    def open(cls, path: Path) -> "ServerFolder":
        """Open a folder. Error: RunError where it is none, or a setting cannot be."""
        if not (path / "server.yaml").exists():
            raise RunError(f"{str(path)!r} is no server's folder; make one with `fedimaging server init`.")
        try:
            settings = ServerSettings.model_validate(read_yaml(path / "server.yaml"))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
            raise RunError(f"{str(path / 'server.yaml')!r} cannot be used: {faults}.") from None
        return cls(path.resolve(), settings)

    @property
    def ca(self) -> Path:
        """The authority's certificate: every hospital needs a copy."""
        return self.path / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.path / "server.crt"

    @property
    def key(self) -> Path:
        """The server's key."""
        return self.path / "server.key"

    @property
    def database(self) -> Path:
        """Flower's database."""
        return self.path / "state.db"

    @property
    def socket(self) -> Path:
        """Where the running server answers its operator, and only this user."""
        return self.path / "api.sock"

    @property
    def secret(self) -> bytes:
        """Who knows it may act as a run's ServerApp. Error: RunError."""
        path = self.path / "superexec.secret"
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunError(f"{str(path)!r} cannot be read: {error.strerror}; restore it from a copy.") from None

    def renew(self) -> None:
        """Make the server a new key and certificate, signed by the same authority: hospitals change nothing."""
        issue(self.settings.host, self.ca, self.path / "ca.key", self.certificate, self.key)

    def audit(self, event: str, **facts: Any) -> None:
        """One line of the server's log."""
        AuditLog(self.path / "audit.jsonl").write(event, **facts)

    def sites(self) -> dict[str, RegisteredSite]:
        """The hospitals by name. Error: RunError."""
        path = self.path / "sites.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            return {name: RegisteredSite.model_validate(site) for name, site in sorted(tree.items())}
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"{str(path)!r} cannot be read ({error}); restore it from a copy.") from None

    def add_site(self, name: str, key: Path, patients: int | None) -> str:
        """Admit a hospital by its public key; returns the key's fingerprint. Error: RunError.

        The same name and key again changes the number of patients. A name keeps its key: a hospital that lost its key is
        removed first, so that nobody takes its place unnoticed.
        """
        if not _NAME.fullmatch(name):
            rule = "is not 1 to 64 letters, digits, spaces, dots, dashes or underscores"
            raise RunError(bad_value("NAME", name, rule, "use the name that the studies will use"))
        public = read_public(key)
        with held(self.path / ".sites.lock"):
            sites = self.sites()
            for other, site in sites.items():
                if (site.key == public) != (other == name):
                    what = f"has the key already that {other!r} has" if site.key == public else "has another key already"
                    raise RunError(f"site {name!r} {what}; remove it first with `fedimaging server remove-site`.")
            added = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._write(sites | {name: RegisteredSite(key=public, patients=patients, added=added)})
        self.audit("site_added", site=name, key=fingerprint(public))
        return fingerprint(public)

    def remove_site(self, name: str) -> None:
        """Shut a hospital out; Flower never admits its key again. Error: RunError."""
        with held(self.path / ".sites.lock"):
            sites = self.sites()
            if name not in sites:
                raise RunError(unknown_name("NAME", name, sites))
            key = fingerprint(sites.pop(name).key)
            self._write(sites)
        self.audit("site_removed", site=name, key=key)

    def _write(self, sites: dict[str, RegisteredSite]) -> None:
        write_json(self.path / "sites.json", {name: site.model_dump() for name, site in sorted(sites.items())})
