"""What a ledger says, in lines for a terminal. Standard library only; epsilon comes from whoever asks.

No patient data is in a ledger, so none can be printed: events name studies, rounds, steps, noise and bytes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedimaging.errors import LedgerError
from fedimaging.privacy.ledger import EpsilonOf, Ledger
from fedimaging.privacy.ledger_events import Chain, Row
from fedimaging.privacy.ledger_verify import verdict, verify

_SHOWN = 12  # characters of a study's fingerprint


def show(path: Path, head: Path | None = None) -> list[str]:
    """Every event in words, what all of them add up to, and the verdict. Error: LedgerError for what is not in order."""
    chain = verify(path, head)
    said = [f"{row.seq:>5}  {row.time}  {_words(row)}" for row in chain.rows]
    return [*said, "", *_spent(chain), verdict(chain)]


def replay(path: Path, delta: float, epsilon_of: EpsilonOf, head: Path | None = None) -> list[str]:
    """Epsilon after every event that changed what is spent, computed now from the events alone.

    Errors: LedgerError; PrivacyError from `epsilon_of` for a delta or a mixture of units that cannot be accounted for.
    """
    history = Ledger(path, head).replay(delta, epsilon_of)
    lines = [f"{row.seq:>5}  {row.time}  {_words(row):<64}  epsilon {_rounded_up(epsilon)}" for row, epsilon in history]
    units = {row.facts["charge"]["unit"] for row, _ in history if row.kind == "reserved"}
    whole = history[-1][1] if history else 0.0
    unit = "record" if units == {"record"} else "patient"
    return [*lines, f"epsilon {_rounded_up(whole)} at delta {delta:g} for each {unit}, from {len(history)} events"]


def export(path: Path, target: Path, head: Path | None = None) -> list[str]:
    """Write all events as lines of JSON. Error: LedgerError where the ledger is not in order or `target` cannot be written."""
    try:
        count = Ledger(path, head).export(target)
    except OSError as error:
        why = error.strerror or error
        raise LedgerError(f"cannot write {str(target)!r}: {why}; check the folder and its permissions.") from error
    return [f"{count} events written to {target}"]


def create(path: Path, head: Path | None = None) -> list[str]:
    """Make a ledger for a hospital that never trained. Error: LedgerError where one is, or was."""
    return [verdict(verify(Ledger.create(path, head).path, head))]


def _rounded_up(epsilon: float) -> str:
    """Four decimals, never less than the epsilon itself."""
    return f"{math.ceil(epsilon * 1e4 - 1e-9) / 1e4:.4f}" if math.isfinite(epsilon) else "infinity"


def _words(row: Row) -> str:
    facts = row.facts
    if row.kind == "created":
        return f"created ledger {facts['ledger'][:_SHOWN]}"
    if row.kind == "reserved":
        return f"reserved {_charge(facts['charge'])} for round {facts['round']} of {facts['run']} {facts['study'][:_SHOWN]}"
    if row.kind == "settled":
        return f"settled {facts['entry']}: {facts['steps_run']} steps were run"
    if row.kind == "given_up":
        return f"gave up {facts['entry']}, which a crash cut short: charged in full"
    return f"released {facts['what']}, {facts['bytes']:,} bytes, under {facts['entry']}"


def _charge(charge: Mapping[str, Any]) -> str:
    scans = charge.get("scans_per_patient")
    most = f" (a patient has up to {scans})" if scans else ""
    return (
        f"{charge['steps']} steps, sigma {charge['noise_multiplier']:.4g}, q {charge['sample_rate']:.4g}, "
        f"unit {charge['unit']}{most}"
    )


def _spent(chain: Chain) -> list[str]:
    """Steps charged per kind of step, and how many reservations nobody settled."""
    total: dict[tuple[float, float, str], int] = {}
    for charge in chain.charges():
        kind = (charge.noise_multiplier, charge.sample_rate, charge.unit)
        total[kind] = total.get(kind, 0) + charge.steps
    lines = [f"charged: {steps} steps, sigma {kind[0]:.4g}, q {kind[1]:.4g}, unit {kind[2]}" for kind, steps in total.items()]
    open_entries = _unsettled(chain.rows)
    if open_entries:
        lines.append(f"not settled (at work, or cut short by a crash), and charged in full: {', '.join(map(str, open_entries))}")
    return lines or ["charged: nothing"]


def _unsettled(rows: Sequence[Row]) -> list[int]:
    closed = {row.facts["entry"] for row in rows if row.kind in ("settled", "given_up")}
    return [row.seq for row in rows if row.kind == "reserved" and row.seq not in closed]
