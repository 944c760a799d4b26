"""A hospital's privacy ledger: one SQLite file for its patients, shared by all studies and processes.

Guarantees. An entry is on disk (full sync) before `reserve` returns, and training comes after: a crash at any moment
leaves at least as many steps charged as were run. Check and charge are one exclusive transaction: of two processes
that want the last of the budget, one gets it. Every operation first verifies the ledger (`ledger_verify.py`): a
missing, altered or rolled-back one stops training. Standard library only; each operation opens its own connection, so
one `Ledger` may be used from several threads, and across a fork.
"""

import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from fedimaging.errors import BudgetExceeded, LedgerError, PrivacyError, bad_value
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger_events import Chain, Row, reservation
from fedimaging.privacy.ledger_verify import (
    Head,
    check_head,
    file_digest,
    head_path,
    know_chain,
    known_chain,
    opened,
    read_head,
    read_rows,
    sync_folder,
    verify,
    verify_file,
    write_head,
)

EpsilonOf = Callable[[Sequence[Charge], float], float]
"""(all charges, delta) -> an epsilon, or an upper bound of it: `accounting.epsilon`, or `accounting.bound_for`."""

_SCHEMA = """
CREATE TABLE events (seq INTEGER PRIMARY KEY, time TEXT NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL,
                     body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'ledger events never change'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'ledger events are never deleted'); END;
"""


@dataclass(frozen=True)
class Entry:
    """A reservation: `id` settles it; `epsilon` is what `epsilon_of` said of all charges with this one."""

    id: int
    charge: Charge
    epsilon: float


class Ledger:
    """An existing ledger. `head`: its head file, on another disk if the hospital likes; default beside the ledger.
    `durable` False is for simulations: what is written then survives a kill of the process, but not a power cut.

    Error: LedgerError where the ledger or its head is missing, altered or rolled back; it is never made in passing.
    """

    def __init__(self, path: Path, head: Path | None = None, *, durable: bool = True) -> None:
        self.path, self._durable = Path(path), durable
        self.head = Path(head) if head is not None else head_path(self.path)
        verify_file(self.path, self.head)

    @classmethod
    def create(cls, path: Path, head: Path | None = None, *, durable: bool = True) -> "Ledger":
        """Make an empty ledger, for a hospital that never trained. Finishes a creation that a crash cut short.

        Error: LedgerError where a ledger, or the head of one, is already there.
        """
        path, head = Path(path), Path(head) if head is not None else head_path(Path(path))
        if head.exists():
            state = "both its files are there" if path.exists() else "its head file is there but the ledger is not"
            raise LedgerError(
                f"a ledger {str(path)!r} was made before ({state}); use it, or restore it from a copy: "
                "a new one would forget what was spent."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with opened(path, durable=durable) as database:
            _create_tables(database)
            if durable:
                sync_folder(path.parent)
            _publish_head(database, path, head, durable)
        return cls(path, head, durable=durable)

    @classmethod
    def open_or_create(cls, path: Path, head: Path | None = None) -> "Ledger":
        """For simulations, whose hospitals are made on the spot: open, or create where none ever was. Not durable."""
        head = Path(head) if head is not None else head_path(Path(path))
        return cls(path, head, durable=False) if head.exists() else cls.create(path, head, durable=False)

    def reserve(
        self, *, study: str, run: str, round: int, charge: Charge, budget: Budget, epsilon_of: EpsilonOf,
        also: Sequence[tuple[Budget, EpsilonOf]] = (), give_up_open: bool = False,
    ) -> Entry:
        """Charge a round before it trains, if all charges together stay within the budget.

        also: further budgets that must hold too, each with its bound; one of so many days counts only what may have
        been charged in them (`Chain.charges`). A clock that was set back frees nothing; one that is set forward makes
        the charges of a window look older than they are, which only a budget without days withstands.

        give_up_open: say of every open reservation of this study and run that nobody will go on with it (a crash cut it
        short). It stays charged in full, and is as old as this moment. For callers that run one round at a time.

        Guarantee: on return the charge is on disk; whatever happens next, it counts until settled. Errors:
        BudgetExceeded (nothing is charged), LedgerError, PrivacyError from `epsilon_of` for what cannot be accounted.
        """
        budgets = [(budget, epsilon_of), *also]
        with self._locked() as (chain, write):
            after = [bound([*chain.charges(allowed.days), charge], allowed.delta) for allowed, bound in budgets]
            for epsilon, (allowed, _) in zip(after, budgets, strict=True):
                if not epsilon <= allowed.epsilon:  # also refuses NaN
                    raise BudgetExceeded(_exceeded(epsilon, allowed, f"round {round} of study {study!r}"))
            for entry in chain.open_entries(study, run) if give_up_open else ():
                write("given_up", {"entry": entry})
            row = write("reserved", reservation(study, run, round, charge, (allowed for allowed, _ in budgets)))
        return Entry(row.seq, charge, after[0])

    def settle(self, entry_id: int, steps_run: int, *, released: Mapping[str, int] | None = None) -> None:
        """Say how many of the reserved steps were run; the rest is given back. Durable on return.

        released: what left the hospital under this entry, name -> bytes; written in the same transaction.
        Errors: LedgerError for an entry that is not open; PrivacyError if more steps ran than were reserved (they are
        charged all the same).
        """
        if not isinstance(steps_run, int) or isinstance(steps_run, bool) or steps_run < 0:
            raise LedgerError(bad_value("steps_run", steps_run, "must be a whole number of at least 0"))
        with self._locked() as (chain, write):
            reserved = chain.open_charge(entry_id).steps
            write("settled", {"entry": entry_id, "steps_run": steps_run})
            for what, size in (released or {}).items():
                write("released", {"entry": entry_id, "what": what, "bytes": int(size)})
        if steps_run > reserved:
            raise PrivacyError(
                f"entry {entry_id} reserved {reserved} steps, but {steps_run} were run; all are charged, and the "
                "budget may be passed: release nothing of this round, and report this as an error of the program."
            )

    def open_entries(self, study: str, run: str) -> dict[int, int]:
        """Reservations of this study and run that are neither settled nor given up: entry -> round, oldest first."""
        return verify(self.path, self.head).open_entries(study, run)

    def charges(self, days: int | None = None) -> list[Charge]:
        """Everything spent so far, oldest first; what is reserved and not settled counts in full.

        days: only what may have been spent in the last so many days; see `Chain.charges`.
        """
        return verify(self.path, self.head).charges(days)

    def rows(self) -> list[Row]:
        """All events, verified. Error: LedgerError."""
        return verify(self.path, self.head).rows

    def verify(self) -> Row:
        """Check chain, head and file; returns the last event. Error: LedgerError saying what is wrong."""
        return verify(self.path, self.head).last

    def export(self, target: Path) -> int:
        """Write all events as lines of JSON, for an auditor (`ledger_verify.verify_export`); returns their number."""
        rows = self.rows()
        Path(target).write_text("".join(row.as_line() + "\n" for row in rows), encoding="utf-8")
        return len(rows)

    def replay(self, delta: float, epsilon_of: EpsilonOf, days: int | None = None) -> list[tuple[Row, float]]:
        """Every event that changed what is spent, with epsilon after it: how the hospital came to where it is.

        days: of the last so many days before each event.
        """
        chain, history = Chain(), []
        for row in self.rows():
            chain.add(row)
            if row.kind in ("reserved", "settled"):
                history.append((row, epsilon_of(chain.charges(days, datetime.fromisoformat(row.time)), delta)))
        return history

    @contextmanager
    def _locked(self) -> Iterator[tuple[Chain, Callable[[str, Mapping[str, Any]], Row]]]:
        """The verified chain under the write lock, and a pen; commits and records the head unless the body raises."""
        with opened(self.path, durable=self._durable) as database:
            database.execute("BEGIN IMMEDIATE")
            chain = self._verified(database)
            yield chain, partial(_write, database, chain)
            database.execute("COMMIT")
            recorded = _publish_head(database, self.path, self.head, self._durable)
            if recorded.seq == chain.last.seq:  # else another process wrote after our commit
                know_chain(self.path, recorded.file_sha256, chain)

    def _verified(self, database: sqlite3.Connection) -> Chain:
        """The chain, from memory where the file is byte for byte the one that this process verified last."""
        head, digest = read_head(self.head), file_digest(database, self.path)
        chain = known_chain(self.path, digest) or Chain(read_rows(database))
        check_head(head, chain, digest)
        if head.seq < chain.last.seq:  # a crash came between commit and head
            write_head(self.head, Head(chain.last.seq, chain.last.hash, digest), durable=self._durable)
        return chain


def _exceeded(epsilon: float, budget: Budget, when: str) -> str:
    span = "" if budget.days is None else f" for any {budget.days} days"
    remedy = "trains no more in this study" if budget.days is None else "trains again when older charges are past"
    return (
        f"epsilon={epsilon:.4g} after {when} is above this hospital's budget of {budget.epsilon:g}{span} "
        f"(delta={budget.delta:g}); this hospital {remedy}, or its data protection officer raises the budget."
    )


def _write(database: sqlite3.Connection, chain: Chain, kind: str, facts: Mapping[str, Any]) -> Row:
    """Write the next event; durable once the transaction commits."""
    row = chain.following(kind, facts)
    chain.add(row)
    database.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    return row


def _create_tables(database: sqlite3.Connection) -> None:
    """Tables and first event in one transaction, unless an earlier attempt got that far."""
    database.execute("BEGIN IMMEDIATE")
    found = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events'").fetchone()[0]
    if not found:
        for statement in _SCHEMA.strip().split(";\nCREATE"):
            database.execute(statement if statement.startswith("CREATE") else "CREATE" + statement)
        _write(database, Chain(), "created", {"ledger": uuid.uuid4().hex})
    elif database.execute("SELECT count(*) FROM events").fetchone()[0] > 1:
        raise LedgerError(
            "the head file of a ledger with events is missing; restore it from a copy: without it nobody can tell "
            "whether the ledger was rolled back."
        )
    database.execute("COMMIT")


def _publish_head(database: sqlite3.Connection, path: Path, head: Path, durable: bool) -> Head:
    """Record the newest event in the head file; under the write lock, so that the head never goes back."""
    database.execute("BEGIN IMMEDIATE")
    seq, newest = database.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    recorded = Head(seq, newest, file_digest(database, path))
    write_head(head, recorded, durable=durable)
    database.execute("ROLLBACK")
    return recorded
