"""Make a site folder: settings and policy to edit, a key, an empty ledger and log."""

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from string import Template

import yaml
from cryptography.x509 import load_pem_x509_certificates

from fedimaging.errors import SiteError
from fedimaging.files import disk_fault, held
from fedimaging.keys import fingerprint, make_key
from fedimaging.privacy.ledger import Ledger
from fedimaging.site.folder import SiteFolder, SiteSettings
from fedimaging.study.load import validated

_OPT_OUT = "# Patient ids of this hospital who never train, one a line. A line that begins with # is a remark.\n"


def make_site_folder(
    path: Path, *, name: str, server: str, ca: Path | None = None, root: str = "data", manifest: str = "manifest.csv",
    contact: str = "",
) -> SiteFolder:
    """Write a new site folder at `path`, which must not exist or be empty. Whatever goes wrong, nothing is left behind.

    ca: the authority's certificate (PEM), copied into the folder; None: to be put there later, as ca.crt.
    Errors: SiteError, RunError.
    """
    text = _settings(name=name, server=server, root=root, manifest=manifest, contact=contact)
    authority = None if ca is None else read_authority(ca)
    made = _empty_folder(path)
    try:
        _fill(SiteFolder(path), text, authority)
    except BaseException as error:
        _clear(path, made)
        if isinstance(error, OSError):
            raise SiteError(disk_fault(path, error)) from error
        raise
    return SiteFolder.open(path)


def replace_key(folder: SiteFolder) -> None:
    """Make a new key in place of the old one, which is gone then. Error: RunError, also while a node of the folder runs."""
    with held(folder.run_lock, "a node runs in this folder; stop it before its key is replaced."):
        public = make_key(folder.key_file, folder.public_key_file)
        folder.log.write("key_replaced", key=fingerprint(public))


def read_authority(path: Path) -> bytes:
    """The certificates in a PEM file. Error: SiteError where there are none."""
    try:
        content = path.read_bytes()
        load_pem_x509_certificates(content)
    except OSError as error:
        raise SiteError(f"the authority's certificate {str(path)!r} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise SiteError(f"{str(path)!r} holds no certificate in PEM form; ask the operator for ca.crt.") from None
    return content


def _settings(**values: str) -> str:
    """site.yaml, filled in. Error: SiteError for values that make no sense."""
    template = files("fedimaging.site").joinpath("templates", "site.yaml").read_text(encoding="utf-8")
    text = Template(template).substitute({key: json.dumps(value, ensure_ascii=False) for key, value in values.items()})
    validated(SiteSettings, yaml.safe_load(text), "site.yaml", SiteError)
    return text


def _empty_folder(path: Path) -> bool:
    """Make it; False where it was there already, and empty. Error: SiteError."""
    try:
        path.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        if not path.is_dir() or any(path.iterdir()):
            raise SiteError(f"{str(path)!r} is there already; a site folder is never overwritten. Name a new one.") from None
        return False
    except OSError as error:
        raise SiteError(disk_fault(path, error)) from error
    return True


def _fill(folder: SiteFolder, settings: str, authority: bytes | None) -> None:
    folder.settings_file.write_text(settings, encoding="utf-8")
    policy = files("fedimaging.site").joinpath("templates", "policy.yaml").read_text(encoding="utf-8")
    folder.policy_file.write_text(policy, encoding="utf-8")
    folder.opt_out_file.write_text(_OPT_OUT, encoding="utf-8")
    if authority is not None:
        (folder.path / "ca.crt").write_bytes(authority)
    for private in (folder.key_file.parent, folder.path / "studies", folder.store):
        private.mkdir(mode=0o700)
    make_key(folder.key_file, folder.public_key_file)
    Ledger.create(folder.ledger_file, folder.ledger_head)
    folder.approvals_file.touch(mode=0o600)
    folder.log.write("created")
    os.chmod(folder.audit_file, 0o600)


def _clear(path: Path, made: bool) -> None:
    if made:
        shutil.rmtree(path, ignore_errors=True)
        return
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
