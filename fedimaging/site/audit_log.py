"""A hospital's audit log: one JSON line an event, each carrying the hash of the line before it.

Standard library only, so that an auditor can read and verify a log without this package's dependencies. No patient
data is written: events name studies, rounds, codes, bytes and norms.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from fedimaging.errors import LedgerError, RunError

_START = "0" * 64


class AuditLog:
    """Append-only log in one file. `durable`: each line is on the disk before `write` returns (fsync)."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._path = path
        self._durable = durable
        self._sequence, self._head = _tail(path)

    def write(self, event: str, **facts: str | int | float | bool | None) -> None:
        """Append one event, whole or not at all. Error: RunError when the disk is full or the log cannot be written."""
        body: dict[str, Any] = {"sequence": self._sequence, "time": round(time.time(), 3), "event": event, **facts}
        body["previous"] = self._head
        body["hash"] = _hash(body)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(body, sort_keys=True) + "\n")
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                _tail(self._path)  # cuts off the part of a line that a full disk took
            text = f"audit log {str(self._path)!r} cannot be written: {error.strerror}; free some space, or check its folder."
            raise RunError(text) from error
        self._sequence, self._head = self._sequence + 1, body["hash"]


def read(path: Path) -> list[dict[str, Any]]:
    """All events in order, verified. Error: LedgerError where a line was altered, removed or cut in the middle.

    A last line without its newline is a write that a crash cut short; it is left out (and overwritten by nobody).
    """
    events: list[dict[str, Any]] = []
    head = _START
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            raise LedgerError(f"audit log {path.name} line {number} is not JSON; the log was altered.") from None
        expected = _hash({k: v for k, v in event.items() if k != "hash"})
        if event.get("previous") != head or event.get("hash") != expected or event.get("sequence") != number - 1:
            raise LedgerError(f"audit log {path.name} line {number} breaks the hash chain; the log was altered.")
        head = event["hash"]
        events.append(event)
    return events


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _tail(path: Path) -> tuple[int, str]:
    """Next sequence number and head; a line that a crash cut short is cut off so that the chain goes on cleanly."""
    if not path.exists():
        return 0, _START
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    if whole == 0:
        return 0, _START
    last = json.loads(content[content.rfind(b"\n", 0, whole - 1) + 1 : whole])
    return int(last["sequence"]) + 1, str(last["hash"])
