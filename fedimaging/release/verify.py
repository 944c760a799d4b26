"""Is a release as it was signed? Every byte of every file is read; no network is loaded and nothing in the folder is run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedimaging.errors import ReleaseError, bad_value
from fedimaging.files import sha256_of
from fedimaging.release.signing import is_signed, read_verifying_key

SCHEMA = "fedimaging release 1"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MODEL = "bundle/models/model.pt"


def verify(folder: Path, public_key: str | None = None) -> dict[str, Any]:
    """The manifest of a release of which every byte is as it was signed, by `public_key` (PEM) where one is given.

    Error: ReleaseError naming the file that is missing, added or altered, or saying that the signature is not of that key.
    Without `public_key` the key is the manifest's own: that shows that nothing was altered after signing, not who signed.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
        signature = (folder / SIGNATURE).read_bytes().decode("ascii")
        manifest: dict[str, Any] = json.loads(content)
        files, own_key = dict(manifest["files"]), str(manifest["public_key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or f"not as a release has it ({type(error).__name__})"
        raise ReleaseError(f"{str(folder)!r} is no release: {MANIFEST} or {SIGNATURE} cannot be read: {why}.") from None
    if manifest.get("schema") != SCHEMA:
        rule = f"is not {SCHEMA!r}"
        raise ReleaseError(bad_value(f"{MANIFEST}: schema", manifest.get("schema"), rule, "use the version that wrote it"))
    key = read_verifying_key(public_key or own_key, "--public-key" if public_key else MANIFEST)
    if not is_signed(key, signature, content) or signature != signature.strip().lower() + "\n":
        raise ReleaseError(f"{MANIFEST} or {SIGNATURE} was altered, or signed with another key: the signature does not fit.")
    _compare(folder, files)
    return manifest


def _compare(folder: Path, files: Mapping[str, str]) -> None:
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    extra = sorted(there.keys() - files.keys() - {MANIFEST, SIGNATURE})
    if extra:
        raise ReleaseError(f"{extra[0]} is no part of this release ({len(extra)} such in all); it was added after signing.")
    for name, digest in sorted(files.items()):
        if name not in there:
            raise ReleaseError(f"{name} is missing from this release.")
        if there[name].is_symlink() or sha256_of(there[name]) != digest:
            raise ReleaseError(f"{name} was altered after this release was signed.")
