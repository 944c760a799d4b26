"""A hospital's audit log: one JSON line an event, each carrying the hash of the line before it.

Standard library only, so that an auditor can read and verify a log without this package's dependencies. No patient
data is written: events name studies, rounds, codes, bytes and norms. Several processes may write to one log.

What the chain cannot show: that lines were cut off at the end. Against that, note the last hash somewhere else.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from fedimaging import __version__
from fedimaging.errors import LedgerError, RunError

_START = "0" * 64
_BLOCK = 65536
_REFUSALS, _SPAN_SECONDS = 20, 60.0  # lines for one code in that time: a server that asks without end cannot fill the disk


class AuditLog:
    """Append-only log in one file. `durable`: each line is on the disk before `write` returns (fsync)."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._path = path
        self._durable = durable
        self._size, self._sequence, self._head = -1, 0, _START  # size -1: not read yet
        self._refusals: dict[str, tuple[float, int]] = {}  # code -> when its span began, how many came in it

    def write(self, event: str, **facts: Any) -> None:
        """Append one event, whole or not at all; each says which version of this program wrote it.

        Of "refused" events with one `code` at most 20 a minute are written; the next one says how many were `unwritten`.
        Error: RunError when the disk is full, or the log cannot be written or gone on with.
        """
        if event == "refused":
            unwritten = self._counted(str(facts["code"]))
            if unwritten is None:
                return
            facts |= {"unwritten": unwritten} if unwritten else {}
        try:
            with self._path.open("a+b", buffering=0) as file:  # a buffer would write what a full disk refused when it is closed
                fcntl.flock(file, fcntl.LOCK_EX)
                self._follow(file)
                self._append(file, {"event": event, **facts})
        except OSError as error:
            text = f"audit log {str(self._path)!r} cannot be written: {error.strerror}; free some space, or check its folder."
            raise RunError(text) from error

    def _counted(self, code: str) -> int | None:
        """None: this refusal is one too many of its minute. Else how many were, in the minute before."""
        now, (began, count) = time.monotonic(), self._refusals.get(code, (0.0, 0))
        over = count > 0 and now - began >= _SPAN_SECONDS
        self._refusals[code] = (now, 1) if over or not count else (began, count + 1)
        if over:
            return max(0, count - _REFUSALS)
        return None if count >= _REFUSALS else 0

    def _follow(self, file: IO[bytes]) -> None:
        """Take up the chain where the file ends, which another process may have made longer."""
        if file.seek(0, os.SEEK_END) != self._size:
            self._size, last = _last_line(file)
            file.truncate(self._size)  # what a crash cut short goes, so that the chain goes on cleanly
            self._sequence, self._head = self._after(last) if last else (0, _START)

    def _after(self, line: bytes) -> tuple[int, str]:
        """Number and `previous` of the event that follows this line."""
        try:
            event = json.loads(line)
            return int(event["sequence"]) + 1, str(event["hash"])
        except (ValueError, KeyError, TypeError) as error:
            text = f"audit log {str(self._path)!r} was altered: its last line is no event; restore it from a copy."
            raise RunError(text) from error

    def _append(self, file: IO[bytes], facts: dict[str, Any]) -> None:
        place = {"sequence": self._sequence, "previous": self._head, "time": round(time.time(), 3), "version": __version__}
        body: dict[str, Any] = place | facts
        body["hash"] = _hash(body)
        line = json.dumps(body, sort_keys=True).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:])
            if self._durable:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # the fault that is being told already is the one that matters
                os.ftruncate(file.fileno(), self._size)  # the part of a line that a full disk took
            self._size = -1
            raise
        self._size, self._sequence, self._head = self._size + len(line), self._sequence + 1, body["hash"]


def read(path: Path) -> list[dict[str, Any]]:
    """All events in order, verified. Error: LedgerError where a line was altered, removed or cut in the middle.

    A last line without its newline is a write that a crash cut short; it is left out (and overwritten by nobody).
    """
    events: list[dict[str, Any]] = []
    head = _START
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise LedgerError(f"audit log {str(path)!r} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = json.loads(line)
            expected = _hash({k: v for k, v in event.items() if k != "hash"})
        except (ValueError, AttributeError):
            raise LedgerError(f"audit log {path.name} line {number} is not JSON; the log was altered.") from None
        if event.get("previous") != head or event.get("hash") != expected or event.get("sequence") != number - 1:
            raise LedgerError(f"audit log {path.name} line {number} breaks the hash chain; the log was altered.")
        head = event["hash"]
        events.append(event)
    return events


def verdict(path: Path) -> str:
    """One line about a log that is in order. Error: LedgerError where it is not, or is not there."""
    if not path.exists():
        raise LedgerError(f"audit log {str(path)!r} does not exist.")
    events = read(path)
    if not events:
        return "in order: no events yet"
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(events[-1]["time"]))
    return f"in order: {len(events)} events, last {when}, head {events[-1]['hash']}"


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _last_line(file: IO[bytes]) -> tuple[int, bytes]:
    """Where the last whole line ends, and that line; nothing of the file before it is read."""
    size, tail = file.seek(0, os.SEEK_END), b""
    while size > len(tail) and tail.count(b"\n") < 2:
        block = min(_BLOCK, size - len(tail))
        file.seek(size - len(tail) - block)
        tail = file.read(block) + tail
    end = tail.rfind(b"\n") + 1
    return size - len(tail) + end, tail[tail.rfind(b"\n", 0, max(0, end - 1)) + 1 : end]
