"""The words of the ledger and the chain that binds them. Standard library only.

A ledger is a list of events. Each carries the hash of the one before it, so that no event can be changed, dropped,
inserted or reordered without breaking every later hash. Epsilon is never written down: it is computed from the events.
The meaning of a (version, kind) never changes; a new meaning gets a new version.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, NamedTuple

from fedimaging.errors import LedgerError, PrivacyError, bad_value
from fedimaging.privacy.budget import Budget, Charge

VOCABULARY: dict[int, dict[str, frozenset[str]]] = {
    1: {
        # The first event, and only the first. `ledger` is a random name, so that two ledgers cannot be swapped.
        "created": frozenset({"ledger"}),
        # Before training: these steps count as spent from now on. `budget.epsilon` null: no limit was set.
        "reserved": frozenset({"study", "run", "round", "charge", "budget"}),
        # After training: of the steps reserved by event `entry`, `steps_run` were run, and only they are charged.
        "settled": frozenset({"entry", "steps_run"}),
        # Something computed from patients left the hospital: `what`, of `bytes` bytes, under reservation `entry`.
        "released": frozenset({"entry", "what", "bytes"}),
    },
    2: {
        "created": frozenset({"ledger"}),
        # As in version 1, within each of `budgets`; `days` null: for ever, else in any so many days.
        "reserved": frozenset({"study", "run", "round", "charge", "budgets"}),
        "settled": frozenset({"entry", "steps_run"}),
        "released": frozenset({"entry", "what", "bytes"}),
        # Nobody will go on with reservation `entry` (a crash cut it short); all that it reserved stays charged.
        "given_up": frozenset({"entry"}),
    },
}
VERSION = 2
NOTHING_BEFORE = "0" * 64
_AFTER_ALL = datetime.max.replace(tzinfo=UTC)
RESTORE = (
    "no training until this is cleared up: restore the newest copy of the ledger together with its head file, "
    "and find out who or what changed it"
)


class Row(NamedTuple):
    """One event: number from 1, UTC time, words of which version, kind, body, and the two hashes of the chain."""

    seq: int
    time: str
    version: int
    kind: str
    body: str
    previous: str
    hash: str

    @property
    def facts(self) -> dict[str, Any]:
        """The body as a dictionary."""
        facts: dict[str, Any] = json.loads(self.body)
        return facts

    def as_line(self) -> str:
        """One line of JSON, as `export` writes it; the body stays text, because the hash is of its bytes."""
        return json.dumps(self._asdict(), sort_keys=True)


class Chain:
    """Events verified one by one, and what they add up to. Errors of `add`: LedgerError naming the bad event."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows: list[Row] = []
        self._charges: dict[int, Charge] = {}
        self._closed: dict[int, int] = {}  # reservation -> the event that settled it or gave it up
        self._times: list[datetime] = []
        for row in rows:
            self.add(row)

    @property
    def last(self) -> Row:
        """The newest event. Error: LedgerError where there is none, not even the creation."""
        if not self.rows:
            raise LedgerError(f"the ledger holds no events, not even its creation; {RESTORE}.")
        return self.rows[-1]

    def add(self, row: Row) -> None:
        """Take the next event, if it follows from those before it and says something that this version knows."""
        seq, previous = (self.rows[-1].seq + 1, self.rows[-1].hash) if self.rows else (1, NOTHING_BEFORE)
        if row.seq != seq:
            raise LedgerError(f"ledger event {seq} is missing (found event {row.seq} in its place); {RESTORE}.")
        if row.previous != previous:
            raise LedgerError(f"ledger event {seq} does not follow the event before it; {RESTORE}.")
        if row.hash != _hash(*row[:6]):
            raise LedgerError(f"ledger event {seq} was altered: its hash does not fit its content; {RESTORE}.")
        time = _time_of(row)
        self._take(row, _known_facts(row))
        self._times.append(time)
        self.rows.append(row)

    def copy(self) -> "Chain":
        """One that grows on its own; nothing is verified again."""
        other = Chain()
        other.rows, other._times = self.rows.copy(), self._times.copy()
        other._charges, other._closed = self._charges.copy(), self._closed.copy()
        return other

    def following(self, kind: str, facts: Mapping[str, Any]) -> Row:
        """The next event, made now; it is not taken until `add`."""
        seq, previous = (self.last.seq + 1, self.last.hash) if self.rows else (1, NOTHING_BEFORE)
        time = clock().isoformat(timespec="seconds")
        body = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return Row(seq, time, VERSION, kind, body, previous, _hash(seq, time, VERSION, kind, body, previous))

    def charges(self, days: int | None = None, now: datetime | None = None) -> list[Charge]:
        """What was spent, oldest first: a settled entry costs its steps run, any other all that it reserved.

        days: only what may have been run in the last so many days before `now` (default: this moment). A charge is as
        old as the event that closed it, and an open one is of today. On doubt it counts: an event whose clock says less
        than an earlier event's may have come at any time up to the next one whose clock does not.
        """
        if days is None:
            return [charge for charge in self._charges.values() if charge.steps > 0]
        since = (now or clock()) - timedelta(days=days)
        latest = self._latest_times()
        return [
            charge for entry, charge in self._charges.items()
            if charge.steps > 0 and (entry not in self._closed or latest[self._closed[entry] - 1] > since)
        ]

    def _latest_times(self) -> list[datetime]:
        """For each event the latest moment at which it can have come, as told by the events after it."""
        newest = accumulate(self._times, max)
        latest, after = [], _AFTER_ALL
        for told, most in reversed(list(zip(self._times, newest, strict=True))):
            after = told if told == most else after  # else the clock was set back before this event, nobody knows how far
            latest.append(after)
        return latest[::-1]

    def open_entries(self, study: str, run: str) -> dict[int, int]:
        """Reservations of this study and run that nobody settled or gave up: entry -> round, oldest first."""
        reserved = {row.seq: row.facts for row in self.rows if row.kind == "reserved" and row.seq not in self._closed}
        return {seq: facts["round"] for seq, facts in reserved.items() if (facts["study"], facts["run"]) == (study, run)}

    def open_charge(self, entry: int) -> Charge:
        """What an unsettled reservation reserved. Error: LedgerError for any other number."""
        if entry not in self._charges:
            raise LedgerError(bad_value("entry", entry, "is no reservation of this ledger", "settle what reserve gave"))
        if entry in self._closed:
            raise LedgerError(bad_value("entry", entry, "is settled already", "reserve the next round first"))
        return self._charges[entry]

    def _take(self, row: Row, facts: Mapping[str, Any]) -> None:
        """Let one event change what is spent."""
        try:
            if row.kind == "reserved":
                self._charges[row.seq] = Charge(**facts["charge"])
            elif row.kind == "settled":
                self._charges[facts["entry"]] = replace(self.open_charge(facts["entry"]), steps=facts["steps_run"])
                self._closed[facts["entry"]] = row.seq
            elif row.kind == "given_up":
                self.open_charge(facts["entry"])
                self._closed[facts["entry"]] = row.seq
            elif row.kind == "released" and facts["entry"] not in self._charges:
                raise LedgerError(f"entry {facts['entry']} was never reserved")
        except (PrivacyError, TypeError) as error:
            raise LedgerError(f"ledger event {row.seq} makes no sense ({error}); {RESTORE}.") from error


def clock() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


def reservation(study: str, run: str, round: int, charge: Charge, budgets: Iterable[Budget]) -> dict[str, Any]:
    """The body of a "reserved" event."""
    allowed = [asdict(budget) | ({} if math.isfinite(budget.epsilon) else {"epsilon": None}) for budget in budgets]
    return {"study": study, "run": run, "round": round, "charge": asdict(charge), "budgets": allowed}


def _hash(seq: int, time: str, version: int, kind: str, body: str, previous: str) -> str:
    """SHA-256 over an unambiguous writing of all fields."""
    return hashlib.sha256(json.dumps([seq, time, version, kind, body, previous]).encode()).hexdigest()


def _time_of(row: Row) -> datetime:
    """When the event says that it came. Error: LedgerError where it says no time."""
    try:
        return datetime.fromisoformat(row.time).astimezone(UTC)
    except (TypeError, ValueError) as error:
        raise LedgerError(f"ledger event {row.seq} has no time ({row.time!r}); {RESTORE}.") from error


def _known_facts(row: Row) -> dict[str, Any]:
    """The body of an event whose version, kind and keys are known. Error: LedgerError."""
    kinds = VOCABULARY.get(row.version)
    if kinds is None:
        known = ", ".join(str(version) for version in VOCABULARY)
        raise LedgerError(
            f"ledger event {row.seq} has version {row.version}, this program knows version {known}; "
            "a newer fedimaging wrote it: install that one."
        )
    facts = row.facts
    if kinds.get(row.kind) != facts.keys() or (row.kind == "created") != (row.seq == 1):
        raise LedgerError(f"ledger event {row.seq} is no {row.kind!r} event of version {row.version}; {RESTORE}.")
    return facts
