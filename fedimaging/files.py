"""Files that appear whole or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedimaging.errors import RunError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it over `path`.

    A reader never sees half a file, whatever kills the writer. Error: RunError when the disk is full or the folder
    cannot be written; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        _discard(temporary)
        raise RunError(disk_fault(path, error)) from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):  # the fault that is being told already is the one that matters
        path.unlink(missing_ok=True)


def cut_short(folder: Path, name: str | None = None) -> list[Path]:
    """What writers that were killed left behind: of the file `name` (a pattern) in this folder, or of every file here and below.

    A writer that is alive has such a file too; only who holds the folder's lock can tell.
    """
    found = folder.glob(f".{name}.*.part") if name else folder.rglob(".*.part")
    return [path for path in found if path.name.split(".")[-2].isdigit()]  # the number of the writer's process


def remove_cut_short(folder: Path, name: str | None = None) -> None:
    """Remove what `cut_short` finds."""
    for left in cut_short(folder, name):
        _discard(left)


def write_text(path: Path, text: str) -> None:
    """Write text by rename."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, tree: Any) -> None:
    """Write JSON by rename; NaN is refused, because JSON has none."""
    write_text(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's content. Error: RunError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error


def append_line(path: Path, line: str) -> None:
    """Append one line, on a line of its own also where a kill or a full disk cut the last one short. Error: RunError when
    the disk is full or the folder cannot be written."""
    try:
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode() + b"\n")
    except OSError as error:
        raise RunError(disk_fault(path, error)) from error


@contextlib.contextmanager
def held(path: Path, in_use: str | None = None) -> Iterator[None]:
    """Hold the lock file `path` for a while; the system lets go of it however this process ends.

    Where another process holds it: wait, or with `in_use` raise RunError with that text.
    """
    try:
        file = path.open("w")
    except OSError as error:
        raise RunError(disk_fault(path, error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if in_use else 0))
        except BlockingIOError:
            raise RunError(in_use or "") from None
        yield


def disk_fault(path: Path, error: OSError) -> str:
    """What the operating system said, as one sentence with a remedy."""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk that holds {str(path)!r}; free some space and run again with --resume."
    return f"cannot write {str(path)!r}: {error.strerror or error}; check the folder and its permissions."
