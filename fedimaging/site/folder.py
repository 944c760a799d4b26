"""A hospital's folder: what its node needs, in files that its own people can read and back up.

    site.yaml policy.yaml        who and where, and what is allowed; opt_out.txt: patients who never train
    keys/node.key, node.pub      how the server knows this hospital
    approvals.jsonl              who approved or revoked which study, when and why (chained, as the audit log is)
    studies/FINGERPRINT/         study.yaml: the approved copy, byte for byte; state/: what training leaves from round to round
    ledger.sqlite ledger.head    what was spent on the patients
    audit.jsonl                  what happened
    store/                       decoded scans; made again where it is missing
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, field_validator

from fedimaging.data.spec import Standard
from fedimaging.errors import SiteError
from fedimaging.privacy.ledger import Ledger
from fedimaging.site.audit_log import AuditLog
from fedimaging.site.policy import SitePolicy
from fedimaging.spec import Spec
from fedimaging.study.load import read_yaml, validated

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")  # as the server registers hospitals


class SiteData(Spec):
    """Where the hospital's images are. `root` starts at the site folder, `manifest` at `root`; `columns` gives the
    manifest's own name for a standard column, in place of what a study says."""

    root: str
    manifest: str
    columns: dict[Standard, str] = Field(default_factory=dict)


class SiteSettings(Spec):
    """`site.yaml`. `declared_patients` is a public number; `contact` is for the hospital's own page."""

    name: str
    server: str
    ca: str = "ca.crt"
    contact: str = ""
    declared_patients: int | None = Field(None, ge=1)
    data: SiteData
    device: str = "auto"

    @field_validator("name")
    @classmethod
    def _plain_name(cls, text: str) -> str:
        if not _NAME.fullmatch(text):
            raise ValueError("must be 1 to 64 letters, digits, spaces, dots, dashes or underscores")
        return text

    @field_validator("contact")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if text and not text.isprintable():
            raise ValueError("must be one line")
        return text

    @field_validator("server")
    @classmethod
    def _host_and_port(cls, text: str) -> str:
        host, colon, port = text.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536) or "/" in text:
            raise ValueError("must be host:port, e.g. federation.example.org:8443")
        return text


class SiteFolder:
    """An existing site folder. Settings, policy and opt-out list are read again whenever their file changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file, self.policy_file, self.opt_out_file = path / "site.yaml", path / "policy.yaml", path / "opt_out.txt"
        self.key_file, self.public_key_file = path / "keys" / "node.key", path / "keys" / "node.pub"
        self.ledger_file, self.ledger_head = path / "ledger.sqlite", path / "ledger.head"
        self.audit_file, self.approvals_file = path / "audit.jsonl", path / "approvals.jsonl"
        self.store, self.run_lock = path / "store", path / ".run.lock"
        self._read: dict[Path, tuple[object, Any]] = {}
        self._log: AuditLog | None = None

    @classmethod
    def open(cls, path: Path) -> "SiteFolder":
        """Error: SiteError where it is no site folder, or its settings or policy make no sense."""
        folder = cls(path.resolve())
        if not folder.settings_file.is_file():
            raise SiteError(f"{str(path)!r} is no site folder (it has no site.yaml); make one with `fedimaging site init`.")
        _ = folder.settings, folder.policy
        return folder

    @property
    def settings(self) -> SiteSettings:
        """site.yaml. Error: SiteError."""
        return self._fresh(self.settings_file, lambda path: _read_spec(path, SiteSettings, "settings"))

    @property
    def policy(self) -> SitePolicy:
        """policy.yaml. Error: SiteError."""
        return self._fresh(self.policy_file, _read_policy)

    @property
    def opt_out(self) -> frozenset[str]:
        """Patient ids that never train. Error: SiteError where the list is gone: nobody may be forgotten by accident."""
        return self._fresh(self.opt_out_file, _read_opt_out)

    @property
    def log(self) -> AuditLog:
        """The hospital's audit log."""
        if self._log is None:
            self._log = AuditLog(self.audit_file)
        return self._log

    def ledger(self) -> Ledger:
        """The hospital's ledger, verified. Error: LedgerError."""
        return Ledger(self.ledger_file, self.ledger_head)

    @property
    def manifest(self) -> Path:
        """The hospital's manifest."""
        return self.data_root / self.settings.data.manifest

    @property
    def data_root(self) -> Path:
        """The folder of the hospital's images."""
        return self.path / self.settings.data.root

    @property
    def ca_file(self) -> Path:
        """The certificate of the federation's authority."""
        return self.path / self.settings.ca

    def study_file(self, fingerprint: str) -> Path:
        """The approved copy of a study."""
        return self.path / "studies" / fingerprint / "study.yaml"

    def state_folder(self, fingerprint: str) -> Path:
        """What training this study leaves from round to round."""
        return self.path / "studies" / fingerprint / "state"

    def _fresh(self, path: Path, read: Callable[[Path], T]) -> T:
        """What `read` makes of the file, kept until the file changes."""
        stamp = stamp_of(path)
        if path not in self._read or self._read[path][0] != stamp:
            self._read[path] = (stamp, read(path))
        value: T = self._read[path][1]
        return value


def stamp_of(path: Path) -> tuple[int, ...] | None:
    """Changes whenever the file is written or replaced; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_ctime_ns


S = TypeVar("S", bound=Spec)


def _read_spec(path: Path, spec: type[S], what: str) -> S:
    return validated(spec, read_yaml(path, what, SiteError), f"{what} {str(path)!r}", SiteError)


def _read_policy(path: Path) -> SitePolicy:
    policy = _read_spec(path, SitePolicy, "policy")
    if policy.release_evaluation == "scores":
        raise SiteError(
            f"policy {str(path)!r}: release_evaluation='scores' is for simulations: scores of real patients are personal "
            "data; take none, coarsened, noised or metrics."
        )
    return policy


def _read_opt_out(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        text = f"the opt-out list {str(path)!r} cannot be read: {why}; restore it (empty where nobody is on it)."
        raise SiteError(text) from None
    ids = (line.strip() for line in lines)
    return frozenset(patient for patient in ids if patient and not patient.startswith("#"))
