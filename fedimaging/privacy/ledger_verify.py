"""Check a ledger with the standard library alone: `python -m fedimaging.privacy.ledger_verify LEDGER [HEAD]`.

Three things must agree: the chain of hashes inside the ledger, the head file beside it (number and hash of the last
event known to be on disk), and the SHA-256 of the whole database file that the head also holds. The ledger may be
ahead of its head, by what a crash between two writes leaves; it may never be behind, for then it was rolled back.

What this cannot see: a ledger and head rewritten together, by someone who may write both. Against that, keep the head
on another machine, or note the last hash in the audit log, or print it.
"""

import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from fedimaging.errors import LedgerError
from fedimaging.privacy.ledger_events import RESTORE, Chain, Row

COLUMNS = "seq, time, version, kind, body, previous, hash"


@dataclass(frozen=True)
class Head:
    """The newest event known to be on disk, and the SHA-256 of the database file that ended with it."""

    seq: int
    hash: str
    file_sha256: str


def head_path(ledger: Path) -> Path:
    """Where the head lives unless the hospital says otherwise: beside the ledger."""
    return ledger.with_name(ledger.name + ".head")


def verify(ledger: Path, head: Path | None = None) -> Chain:
    """All events of a ledger after every check. Errors: LedgerError saying what is wrong and what to do."""
    return verify_file(ledger, head or head_path(ledger))[0]


def verify_file(ledger: Path, head: Path) -> tuple[Chain, str]:
    """As `verify`, with the SHA-256 of the file that was verified."""
    check_exists(ledger)
    # The head is read first: it only grows, so a writer at work beside us can make it older than the rows, not newer.
    recorded = read_head(head)
    with opened(ledger) as database:
        database.execute("BEGIN")
        database.execute("SELECT 1 FROM events LIMIT 1")  # from here on rows and digest are of one moment
        digest = file_digest(database, ledger)
        chain = known_chain(ledger, digest) or Chain(read_rows(database))
    check_head(recorded, chain, digest)
    know_chain(ledger, digest, chain)
    return chain, digest


_KNOWN: dict[str, tuple[str, Chain]] = {}
_KNOWN_LEDGERS = 256


def known_chain(ledger: Path, digest: str) -> Chain | None:
    """The chain of a file that this process verified before, if its bytes are still the same (SHA-256). The head is still to
    be checked."""
    kept, chain = _KNOWN.get(str(ledger.absolute()), ("", None))
    return chain.copy() if chain is not None and kept == digest else None


def know_chain(ledger: Path, digest: str, chain: Chain) -> None:
    """Remember a chain that was verified, or written after one that was. No lock: each step is one of the interpreter's own,
    and what is kept never changes, so threads and forked processes may call this."""
    while len(_KNOWN) >= _KNOWN_LEDGERS:
        _KNOWN.pop(next(iter(_KNOWN), ""), None)
    _KNOWN[str(ledger.absolute())] = (digest, chain.copy())


def verify_export(lines: Iterable[str]) -> Chain:
    """The events of an exported ledger (one JSON object a line), chain checked. Error: LedgerError."""
    try:
        rows = [Row(**json.loads(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise LedgerError(f"the export is not a list of ledger events ({error}); export it again.") from error
    return Chain(rows)


@contextmanager
def opened(ledger: Path, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
    """A connection of its own, so that nothing is trusted from a cache; rolls back unless the body commits.

    durable: what is committed survives a power cut, not only the end of this process.
    Errors: LedgerError where the file is missing, is no database, or stays locked for 60 seconds.
    """
    check_exists(ledger)
    uri = f"file:{quote(str(ledger.absolute()))}?mode=rw"  # rw: never creates the file
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=60.0, isolation_level=None)) as database:
            # EXTRA also syncs the folder once the journal is gone: without it a power cut may undo a committed charge.
            database.execute(f"PRAGMA synchronous={'EXTRA' if durable else 'OFF'}")
            yield database
    except sqlite3.Error as error:
        raise LedgerError(_complaint(ledger, error)) from error


def check_exists(ledger: Path) -> None:
    """Error: LedgerError where there is no such file."""
    if not ledger.exists():
        raise LedgerError(
            f"the ledger {str(ledger)!r} is missing; if this hospital has trained before, restore it with its head "
            "file; only if it never has, make one with `fedimaging ledger create`."
        )


def read_rows(database: sqlite3.Connection) -> list[Row]:
    """All rows, unchecked, in a transaction that stays open, so that `file_digest` sees the same moment."""
    if not database.in_transaction:
        database.execute("BEGIN")
    return [Row(*fields) for fields in database.execute(f"SELECT {COLUMNS} FROM events ORDER BY seq")]


def file_digest(database: sqlite3.Connection, ledger: Path) -> str:
    """SHA-256 of the database file, as this transaction sees it. Error: LedgerError where bytes trail behind it."""
    # Not by opening the file: closing a second descriptor would drop SQLite's own lock on it (POSIX).
    image = database.serialize()
    if os.stat(ledger).st_size != len(image):
        raise LedgerError(f"the ledger {str(ledger)!r} has bytes after its last page; {RESTORE}.")
    return hashlib.sha256(image).hexdigest()


def check_head(head: Head, chain: Chain, digest: str) -> None:
    """The chain must contain the recorded head, and be the very bytes recorded where it ends with it."""
    last = chain.last.seq
    if last < head.seq:
        raise LedgerError(f"the ledger was rolled back: it ends with event {last}, but event {head.seq} was written; {RESTORE}.")
    if chain.rows[head.seq - 1].hash != head.hash:
        raise LedgerError(f"ledger event {head.seq} is not the one that its head file recorded; {RESTORE}.")
    if last == head.seq and digest != head.file_sha256:
        raise LedgerError(f"the ledger file was altered outside its events; {RESTORE}.")


def read_head(path: Path) -> Head:
    """The recorded head. Error: LedgerError where it is missing or not readable."""
    try:
        return Head(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise LedgerError(
            f"the ledger's head file {str(path)!r} is missing, so a rolled-back ledger could not be told; restore it, "
            "or, if this hospital never trained, run `fedimaging ledger create` again."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise LedgerError(f"the ledger's head file {str(path)!r} cannot be read ({error}); {RESTORE}.") from error


def write_head(path: Path, head: Head, *, durable: bool = True) -> None:
    """Replace the head file: no reader sees half of it, and with `durable` it survives a power cut after return."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(head)) + "\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise LedgerError(f"the ledger's head file {str(path)!r} cannot be written: {error}.") from error


def sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open a folder (Windows) order renames by themselves."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _complaint(ledger: Path, error: sqlite3.Error) -> str:
    """SQLite's complaint in our words, with a remedy."""
    text = str(error)
    if "no such table" in text:
        return (
            f"the ledger {str(ledger)!r} holds no events: its creation was cut short, or it was emptied; if this "
            f"hospital never trained, run `fedimaging ledger create` again; if it has, {RESTORE}."
        )
    if "locked" in text:
        return f"the ledger {str(ledger)!r} was held by another process for 60 seconds; try again."
    if "full" in text or "disk I/O" in text:
        return f"the disk of the ledger {str(ledger)!r} is full or failing ({text}); free some space first."
    return f"the ledger {str(ledger)!r} cannot be read as a database ({text}); {RESTORE}."


def verdict(chain: Chain) -> str:
    """One line for a ledger that passed every check."""
    return f"in order: {chain.last.seq} events, last {chain.last.time}, head {chain.last.hash}"


def main(arguments: Sequence[str]) -> int:
    """Print the verdict; 0 where all is well, 1 where not."""
    if len(arguments) not in (1, 2):
        print("usage: python -m fedimaging.privacy.ledger_verify LEDGER [HEAD]")
        return 2
    try:
        chain = verify(*(Path(argument) for argument in arguments))
    except LedgerError as error:
        print(f"NOT IN ORDER: {error}")
        return 1
    print(verdict(chain))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
