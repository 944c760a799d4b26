"""sha256 of files, remembered between runs as long as a file's size, times and inode stay what they were."""

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fedimaging.data.store import in_order
from fedimaging.errors import DataError

_MEMORY = "hashes.json"
_SETTLED_NS = 2_000_000_000  # a file changed this moment may change again within the clock's own step


def digests(paths: Sequence[Path], cache: Path) -> list[str]:
    """sha256 of each file's content; of a folder, over the names and contents of the files in it.

    What was hashed before is taken from a small file in `cache`. Raises DataError for a file that cannot be read.
    """
    known = _recall(cache / _MEMORY)
    files = [sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else [path] for path in paths]
    todo = {str(file): file for group in files for file in group}
    fresh: dict[str, list[str]] = {}

    def digest(file: Path) -> tuple[str, str]:
        stamp = _stamp(file)
        name = str(file.absolute())
        remembered = known.get(name)
        if remembered and remembered[0] == stamp:
            return str(file), remembered[1]
        content = _sha256(file)
        if time.time_ns() - file.stat().st_mtime_ns > _SETTLED_NS:
            fresh[name] = [stamp, content]
        return str(file), content

    of = dict(in_order(digest, todo.values()))
    if fresh:
        _remember(cache / _MEMORY, known | fresh)
    return [
        of[str(path)] if not path.is_dir() else _over([(file.name, of[str(file)]) for file in group])
        for path, group in zip(paths, files, strict=True)
    ]


def _over(entries: list[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _stamp(file: Path) -> str:
    try:
        facts = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{file} is no ordinary file but a device or a pipe; name an image.")
    return f"{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}-{facts.st_ino}"


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error


def _recall(memory: Path) -> dict[str, list[str]]:
    """A missing or broken memory costs time only."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, known: dict[str, list[str]]) -> None:
    """By rename, so that another process reads the old or the new one whole. A disk that takes no more costs time only."""
    handle, name = tempfile.mkstemp(prefix=".hashes-", dir=memory.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(name, memory)
    except OSError:
        Path(name).unlink(missing_ok=True)
