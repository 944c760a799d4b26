"""What a hospital's own files say happened: approvals, what left, refusals, what was spent, and whether all is in order.

Read for `status`, `log` and the privacy officer's page. Nothing here trains, and nothing is written.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fedimaging.errors import LedgerError, PrivacyError
from fedimaging.privacy.accounting import bound_for, epsilon
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger_events import Chain, Row, clock
from fedimaging.privacy.ledger_verify import verdict as ledger_verdict
from fedimaging.privacy.ledger_verify import verify
from fedimaging.site import audit_log
from fedimaging.site.approvals import Approval, newest
from fedimaging.site.folder import SiteFolder

_ANY = float("inf")
_MOST_POINTS = 150  # of a curve

Point = tuple[float, ...]
"""Seconds since 1970, then epsilon under each budget: in total, and in the year before."""


@dataclass(frozen=True)
class Left:
    """Something that left: an `update`, an `evaluation` or a `calibration` (`how`: its mode). `time` in seconds since 1970.
    `epsilon`: of all charges up to then, at the delta of the total budget; None where nothing was charged for it. `size` in
    bytes."""

    time: float
    study: str
    round: int
    what: str
    how: str
    size: int | None
    norm: float | None
    epsilon: float | None


@dataclass(frozen=True)
class Spent:
    """Epsilon spent under one budget, now."""

    budget: Budget
    epsilon: float

    @property
    def span(self) -> str:
        """Over what time, in words."""
        return "in total" if self.budget.days is None else f"in the last {self.budget.days} days"


@dataclass(frozen=True)
class Verdict:
    """Whether one of the files is in order, and in which words."""

    what: str
    ok: bool
    text: str


@dataclass(frozen=True)
class Record:
    """All of it. `curve`: epsilon over time; `years`: of the charges of each calendar year alone, at the delta of the total.
    `missing`: releases that the ledger has and the log has not."""

    events: tuple[Mapping[str, Any], ...]
    decisions: tuple[Mapping[str, Any], ...]
    studies: Mapping[str, Approval]
    left: tuple[Left, ...]
    spent: tuple[Spent, ...]
    curve: tuple[Point, ...]
    years: Mapping[int, float]
    verdicts: tuple[Verdict, ...]
    missing: int

    @property
    def in_order(self) -> bool:
        """Every file is."""
        return all(verdict.ok for verdict in self.verdicts)

    @property
    def refusals(self) -> list[tuple[str, str, int, float]]:
        """(study or blank, code, how often, when last), the newest first."""
        refused = [event for event in self.events if event["event"] == "refused"]
        count = Counter[tuple[str, str]]()
        for event in refused:
            count[str(event.get("study", "")), str(event["code"])] += 1 + int(event.get("unwritten", 0))
        last = {(str(event.get("study", "")), str(event["code"])): float(event["time"]) for event in refused}
        return sorted(((*key, number, last[key]) for key, number in count.items()), key=lambda row: (-row[3], row[:2]))

    def rounds_of(self, study: str) -> int:
        """How many rounds' updates of a study left."""
        return len({one.round for one in self.left if one.study == study and one.what == "update"})


def read_record(folder: SiteFolder) -> Record:
    """Read everything. A file that is not in order is told by its verdict, and shown as empty. Error: SiteError."""
    events, log = _checked("audit log", folder.audit_file, audit_log.read)
    decisions, approvals = _checked("approvals", folder.approvals_file, audit_log.read)
    rows, ledger = _ledger(folder)
    budgets = folder.policy.budgets()
    in_ledger = {_key(rows, row) for row in rows if row.kind == "released"}
    left = [one for event in events if (one := _left(event)) is not None]
    in_log = {(one.study, one.round, one.what) for one in left}
    return Record(
        events=tuple(events), decisions=tuple(decisions), studies=newest(folder) if approvals.ok else {}, left=tuple(left),
        spent=tuple(_spent(folder, budget) for budget in budgets) if ledger.ok else (),
        curve=tuple(_curve(rows, budgets)), years=spent_by_year(rows, budgets[0]),
        verdicts=(ledger, log, approvals), missing=len(in_ledger - in_log),
    )


def rounded_up(epsilon: float) -> str:
    """Two decimals, never less than the epsilon itself."""
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:g}" if math.isfinite(epsilon) else "without limit"


def day_and_time(seconds: float) -> str:
    """By this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _checked(
    what: str, path: Path, read: Callable[[Path], list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], Verdict]:
    try:
        return read(path), Verdict(what, True, audit_log.verdict(path))
    except LedgerError as error:
        return [], Verdict(what, False, str(error))


def _ledger(folder: SiteFolder) -> tuple[list[Row], Verdict]:
    try:
        chain = verify(folder.ledger_file, folder.ledger_head)
    except LedgerError as error:
        return [], Verdict("ledger", False, str(error))
    return chain.rows, Verdict("ledger", True, ledger_verdict(chain))


def _key(rows: Sequence[Row], released: Row) -> tuple[str, int, str]:
    facts = rows[released.facts["entry"] - 1].facts
    return str(facts["study"]), int(facts["round"]), str(released.facts["what"])


def _left(event: Mapping[str, Any]) -> Left | None:
    """An event of the log that says that something left; None for any other."""
    kinds = {"released": "update", "evaluated": "evaluation", "calibrated": "calibration"}
    what = kinds.get(event["event"])
    if what is None:
        return None
    own = "own_" if event.get("model") == "personal" else ""
    how = "" if what == "update" else own + str(event.get("release", ""))
    return Left(
        float(event["time"]), str(event["study"]), int(event["round"]), what, how, event.get("bytes"), event.get("norm"),
        event.get("epsilon"),
    )


def _spent(folder: SiteFolder, budget: Budget) -> Spent:
    try:
        return Spent(budget, epsilon(folder.ledger().charges(budget.days), budget.delta))
    except PrivacyError:  # charges of patients and of records that cannot be added up: no limit is known
        return Spent(budget, _ANY)


def _curve(rows: Sequence[Row], budgets: Sequence[Budget]) -> list[Point]:
    """Under each budget at every moment at which something was closed, or left the window of days, and now."""
    closings = [row for row in rows if row.kind in ("settled", "given_up")]
    if not closings:
        return []
    moments = [datetime.fromisoformat(row.time) for row in closings]
    now = clock()
    past = [moment + timedelta(days=budget.days) for budget in budgets if budget.days for moment in moments]
    wanted = sorted({*moments, *(moment for moment in past if moment < now), now})
    thinned = wanted[:: -max(1, len(wanted) // _MOST_POINTS)][::-1]  # the newest stays
    chain, waiting, points = Chain(), list(rows), []
    for moment in thinned:
        while waiting and datetime.fromisoformat(waiting[0].time) <= moment:
            chain.add(waiting.pop(0))
        spent = tuple(_bound(chain.charges(budget.days, moment), budget.delta) for budget in budgets)
        points.append((moment.timestamp(), *spent))
    return points


def _bound(charges: Sequence[Charge], delta: float) -> float:
    """Quick, and never below the truth."""
    try:
        return bound_for(Budget(_ANY, delta))(charges, delta)
    except PrivacyError:
        return _ANY


def spent_by_year(rows: Sequence[Row], budget: Budget) -> dict[int, float]:
    """Epsilon of what was closed in each calendar year (UTC), at the budget's delta; years without a charge are left out."""
    charges: dict[int, list[Charge]] = {}
    for row in rows:
        if row.kind in ("settled", "given_up"):
            entry = rows[row.facts["entry"] - 1]
            steps = row.facts.get("steps_run", entry.facts["charge"]["steps"])
            charge = Charge(**(entry.facts["charge"] | {"steps": steps}))
            charges.setdefault(datetime.fromisoformat(row.time).year, []).append(charge)
    return {year: _bound(spent, budget.delta) for year, spent in sorted(charges.items())}
