"""The ledger's promises: durable before training, one budget for all, nothing altered unseen."""

import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedimaging.errors import BudgetExceeded, LedgerError, PrivacyError
from fedimaging.privacy import accounting, ledger_events, ledger_verify
from fedimaging.privacy import ledger as ledger_module
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger import Entry, Ledger
from fedimaging.privacy.ledger_verify import head_path, verify_export

CHARGE = Charge(1.0, 0.016, 63, "patient")
BUDGET = Budget(8.0, 1e-5)


def steps_as_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """A stand-in for accounting: 1 per 63 steps."""
    return sum(charge.steps for charge in charges) / 63


def reserve(ledger: Ledger, round: int = 1, charge: Charge = CHARGE, budget: Budget = BUDGET) -> Entry:
    return ledger.reserve(study="s1", run="r1", round=round, charge=charge, budget=budget, epsilon_of=steps_as_epsilon)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.sqlite")


def test_reserved_counts_in_full_until_settled(ledger: Ledger) -> None:
    entry = reserve(ledger)
    assert entry.epsilon == 1.0
    assert ledger.charges() == [CHARGE]
    ledger.settle(entry.id, 40)
    assert ledger.charges() == [Charge(1.0, 0.016, 40, "patient")]
    assert [row.kind for row in ledger.rows()] == ["created", "reserved", "settled"]


def test_one_ledger_holds_studies_of_different_noise_and_unit(ledger: Ledger) -> None:
    other = Charge(2.0, 0.1, 10, "record", scans_per_patient=4)
    for charge in (CHARGE, other):
        reserve(ledger, charge=charge)
    assert ledger.charges() == [CHARGE, other]


def test_steps_never_run_are_given_back(ledger: Ledger) -> None:
    ledger.settle(reserve(ledger).id, 0)
    assert ledger.charges() == []


def test_more_steps_than_reserved_are_charged_and_reported(ledger: Ledger) -> None:
    entry = reserve(ledger)
    with pytest.raises(PrivacyError, match="reserved 63 steps, but 64 were run"):
        ledger.settle(entry.id, 64)
    assert ledger.charges()[0].steps == 64


def test_an_entry_settles_once_and_only_if_it_exists(ledger: Ledger) -> None:
    entry = reserve(ledger)
    ledger.settle(entry.id, 63)
    with pytest.raises(LedgerError, match="settled already"):
        ledger.settle(entry.id, 1)
    with pytest.raises(LedgerError, match="no reservation"):
        ledger.settle(1, 63)
    with pytest.raises(LedgerError, match="steps_run=-1"):
        ledger.settle(reserve(ledger).id, -1)


def test_what_left_is_written_with_the_settlement(ledger: Ledger) -> None:
    entry = reserve(ledger)
    ledger.settle(entry.id, 63, released={"update": 1234})
    last = ledger.rows()[-1]
    assert (last.kind, last.facts) == ("released", {"entry": entry.id, "what": "update", "bytes": 1234})


def test_beyond_the_budget_nothing_is_charged(ledger: Ledger) -> None:
    for round in range(8):
        reserve(ledger, round)
    with pytest.raises(BudgetExceeded, match=r"epsilon=9 after round 8 of study 's1' .* budget of 8"):
        reserve(ledger, 8)
    assert len(ledger.charges()) == 8
    reserve(ledger, 8, budget=Budget(math.inf, 1e-5))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(study="s", run="r", round=1, charge=CHARGE, budget=BUDGET, epsilon_of=lambda charges, delta: math.nan)


def test_fifty_rounds_with_two_crashes_then_ten_more(ledger: Ledger) -> None:
    for round in [*range(1, 51), 3, 17]:  # rounds 3 and 17 were run again after a crash
        entry = reserve(ledger, round, budget=Budget(100.0, 1e-5))
        if len(ledger.rows()) % 5:
            ledger.settle(entry.id, 63)
    assert sum(charge.steps for charge in ledger.charges()) == 52 * 63
    spent = accounting.epsilon(ledger.charges(), 1e-5)
    assert 5.578 < spent < 5.8
    reserve(ledger, charge=Charge(1.0, 0.016, 8 * 63, "patient"), budget=Budget(100.0, 1e-5))
    assert accounting.epsilon(ledger.charges(), 1e-5) == pytest.approx(6.171, abs=0.003)


def test_accounting_decides(ledger: Ledger) -> None:
    budget = Budget(1.3, 1e-5)
    for round in (1, 2):
        ledger.reserve(study="s", run="r", round=round, charge=CHARGE, budget=budget, epsilon_of=accounting.bound_for(budget))
    with pytest.raises(BudgetExceeded, match=r"epsilon=1\.444"):
        ledger.reserve(study="s", run="r", round=3, charge=CHARGE, budget=budget, epsilon_of=accounting.epsilon)


def test_a_ledger_is_never_made_in_passing(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is missing; if this hospital has trained before, restore it"):
        Ledger(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_create_refuses_what_exists_and_what_once_existed(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="both its files are there"):
        Ledger.create(ledger.path)
    ledger.path.unlink()
    with pytest.raises(LedgerError, match="would forget what was spent"):
        Ledger.create(ledger.path)
    with pytest.raises(LedgerError, match="is missing"):
        Ledger.open_or_create(ledger.path)


def test_creation_cut_short_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.touch()
    with pytest.raises(LedgerError, match=r"creation was cut short|head file .* is missing"):
        Ledger(path)
    first = Ledger.open_or_create(path)
    first.head.unlink()
    assert Ledger.open_or_create(path).rows() == first.rows()


def test_a_head_lost_after_charges_is_not_made_up(ledger: Ledger) -> None:
    reserve(ledger)
    ledger.head.unlink()
    with pytest.raises(LedgerError, match=r"head file .* is missing"):
        Ledger(ledger.path)
    with pytest.raises(LedgerError, match="head file of a ledger with events is missing"):
        Ledger.open_or_create(ledger.path)


def test_the_head_may_live_elsewhere(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "l.sqlite", tmp_path / "elsewhere.head")
    reserve(ledger)
    assert Ledger(tmp_path / "l.sqlite", tmp_path / "elsewhere.head").charges() == [CHARGE]
    assert not head_path(ledger.path).exists()


def test_no_byte_of_the_file_changes_unseen(ledger: Ledger) -> None:
    ledger.settle(reserve(ledger).id, 63)
    whole = ledger.path.read_bytes()
    for at in range(0, len(whole), 53):
        ledger.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(LedgerError):
            Ledger(ledger.path)
    ledger.path.write_bytes(whole + b"x")
    with pytest.raises(LedgerError):
        Ledger(ledger.path)
    ledger.path.write_bytes(whole)
    Ledger(ledger.path)


@pytest.mark.parametrize(
    ("forgery", "said"),
    [
        ("UPDATE events SET body = replace(body, '63', '13') WHERE seq = 2", "event 2 was altered"),
        ("DELETE FROM events WHERE seq = 3", "event 3 is missing"),
        ("DELETE FROM events WHERE seq = 5", "rolled back: it ends with event 4, but event 5"),
        ("UPDATE events SET previous = 'x' WHERE seq = 4", "event 4 does not follow"),
        ("DELETE FROM events", "holds no events"),
        ("DROP TABLE events", "holds no events"),
    ],
)
def test_forged_rows_are_named(ledger: Ledger, forgery: str, said: str) -> None:
    for round in (1, 2):
        ledger.settle(reserve(ledger, round).id, 63)
    with sqlite3.connect(ledger.path, isolation_level=None) as database:
        with pytest.raises(sqlite3.Error, match="never"):
            database.execute("DELETE FROM events")
        database.execute("DROP TRIGGER events_stay")
        database.execute("DROP TRIGGER events_last")
        database.execute(forgery)
    database.close()
    with pytest.raises(LedgerError, match=said):
        reserve(ledger)


def test_yesterdays_copy_is_told(ledger: Ledger, tmp_path: Path) -> None:
    reserve(ledger)
    shutil.copy(ledger.path, tmp_path / "yesterday")
    reserve(ledger)
    shutil.copy(tmp_path / "yesterday", ledger.path)
    for use in (lambda: reserve(ledger), lambda: Ledger(ledger.path), ledger.charges):
        with pytest.raises(LedgerError, match="rolled back: it ends with event 2, but event 3 was written; no training"):
            use()


def test_another_ledger_in_its_place_is_told(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger.create(tmp_path / "other.sqlite")
    shutil.copy(other.path, ledger.path)
    with pytest.raises(LedgerError, match="not the one that its head file recorded"):
        reserve(ledger)


def test_a_file_that_is_no_ledger(ledger: Ledger) -> None:
    ledger.path.write_text("not a database, but long enough to look like one " * 20)
    with pytest.raises(LedgerError, match="cannot be read as a database"):
        ledger.charges()
    ledger.head.write_text("{}")
    with pytest.raises(LedgerError, match="cannot be read"):
        ledger.charges()


def test_a_crash_between_commit_and_head_is_healed(ledger: Ledger) -> None:
    entry = reserve(ledger)
    old_head = ledger.head.read_bytes()
    ledger.settle(entry.id, 63)
    ledger.head.write_bytes(old_head)
    assert Ledger(ledger.path).charges() == [CHARGE]
    with pytest.raises(BudgetExceeded):  # even an operation that writes nothing mends the head
        reserve(ledger, budget=Budget(1.0, 1e-5))
    assert ledger.head.read_bytes() != old_head


def test_words_of_a_newer_version_are_not_guessed(ledger: Ledger) -> None:
    chain = ledger_events.Chain(ledger.rows())
    fields = (2, chain.last.time, 3, "reserved", "{}", chain.last.hash)
    with pytest.raises(LedgerError, match="a newer fedimaging wrote it"):
        chain.add(ledger_events.Row(*fields, ledger_events._hash(*fields)))
    with pytest.raises(LedgerError, match="no 'forgiven' event"):
        chain.add(chain.following("forgiven", {"entry": 1}))
    with pytest.raises(LedgerError, match="makes no sense"):
        chain.add(chain.following("released", {"entry": 9, "what": "update", "bytes": 1}))


def test_a_ledger_of_version_1_reads_as_it_always_did() -> None:
    body = '{"budget":{"delta":1e-05,"epsilon":8.0},"charge":{"noise_multiplier":1.0,"sample_rate":0.016,"sampling":"poisson",' \
        '"scans_per_patient":null,"steps":63,"unit":"patient"},"round":1,"run":"r1","study":"s1"}'
    chain, time = ledger_events.Chain(), "2026-11-01T00:00:00+00:00"
    for kind, text in (("created", '{"ledger":"x"}'), ("reserved", body), ("settled", '{"entry":2,"steps_run":40}')):
        seq, previous = len(chain.rows) + 1, chain.rows[-1].hash if chain.rows else ledger_events.NOTHING_BEFORE
        fields = (seq, time, 1, kind, text, previous)
        chain.add(ledger_events.Row(*fields, ledger_events._hash(*fields)))
    assert chain.charges() == [Charge(1.0, 0.016, 40, "patient")]
    fields = (4, time, 1, "given_up", '{"entry":2}', chain.last.hash)
    with pytest.raises(LedgerError, match="no 'given_up' event of version 1"):
        chain.add(ledger_events.Row(*fields, ledger_events._hash(*fields)))
    fields = (4, "yesterday", 2, "given_up", '{"entry":2}', chain.last.hash)
    with pytest.raises(LedgerError, match="has no time"):
        chain.add(ledger_events.Row(*fields, ledger_events._hash(*fields)))


# Budgets of a window of days. The clock is the hospital's own and may be wrong.

YEAR = Budget(2.0, 1e-5, days=366)
TOTAL = Budget(5.0, 1e-5)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the hospital's clock to a day."""

    def set_to(day: str) -> None:
        moment = datetime.fromisoformat(day + "T12:00:00+00:00")
        monkeypatch.setattr(ledger_events, "clock", lambda: moment)

    set_to("2026-01-01")
    return set_to


def spend(ledger: Ledger, *, settle: bool = True, round: int = 1, **more: Any) -> int:
    """One round, within two a year and five in all."""
    entry = ledger.reserve(
        study="s1", run="r1", round=round, charge=CHARGE, budget=TOTAL, epsilon_of=steps_as_epsilon,
        also=[(YEAR, steps_as_epsilon)], **more,
    )
    if settle:
        ledger.settle(entry.id, 63)
    return entry.id


@pytest.fixture
def dated(clock: Callable[[str], None], tmp_path: Path) -> Ledger:
    """Made on the first day of 2026, with a round on 1 February and one on 1 July."""
    ledger = Ledger.create(tmp_path / "dated.sqlite")
    for day in ("2026-02-01", "2026-07-01"):
        clock(day)
        spend(ledger)
    return ledger


def test_a_year_counts_what_was_spent_in_its_days(dated: Ledger, clock: Callable[[str], None]) -> None:
    for day, within in (("2026-07-01", 2), ("2027-02-01", 2), ("2027-02-03", 1), ("2028-07-01", 0)):
        clock(day)
        assert len(dated.charges(366)) == within
    assert len(dated.charges()) == 2
    clock("2027-02-01")
    with pytest.raises(BudgetExceeded, match=r"epsilon=3 .* budget of 2 for any 366 days .* trains again when older"):
        spend(dated)
    assert len(dated.charges()) == 2  # nothing was charged
    clock("2027-02-03")
    spend(dated)
    assert len(dated.charges(366)) == 2


def test_the_total_holds_beside_the_year(dated: Ledger, clock: Callable[[str], None]) -> None:
    for day in ("2028-01-01", "2029-06-01", "2030-12-01"):
        clock(day)
        spend(dated)
    clock("2040-01-01")
    with pytest.raises(BudgetExceeded, match=r"epsilon=6 .* budget of 5 \(delta"):
        spend(dated)


def test_no_window_of_a_year_ever_holds_more(clock: Callable[[str], None], tmp_path: Path) -> None:
    ledger, draw, day, days = Ledger.create(tmp_path / "l.sqlite"), random.Random(0), date(2026, 1, 2), []
    while len(days) < 5:
        clock(day.isoformat())
        with suppress(BudgetExceeded):
            spend(ledger)
            days.append(day)
        day += timedelta(days=draw.randint(1, 90))
    assert all(later - earlier >= timedelta(days=366) for earlier, later in pairwise(days[::2]))
    assert all(days[k + 2] - days[k] >= timedelta(days=366) for k in range(3))


def test_a_charge_is_as_old_as_its_settlement_and_an_open_one_is_of_today(dated: Ledger, clock: Callable[[str], None]) -> None:
    clock("2028-01-01")
    entry = spend(dated, settle=False)  # cut short by a crash
    clock("2030-01-01")
    assert len(dated.charges(366)) == 1
    dated.settle(entry, 63)  # and gone on with after two years
    clock("2030-12-31")
    assert len(dated.charges(366)) == 1
    clock("2031-01-03")
    assert dated.charges(366) == []


def test_what_is_given_up_stays_charged_and_grows_old(dated: Ledger, clock: Callable[[str], None]) -> None:
    clock("2028-01-01")
    entry = spend(dated, settle=False)
    assert dated.open_entries("s1", "r1") == {entry: 1}
    assert dated.open_entries("s1", "r2") == dated.open_entries("s2", "r1") == {}
    following = spend(dated, settle=False, round=2, give_up_open=True)
    assert dated.open_entries("s1", "r1") == {following: 2}
    assert [(row.kind, row.facts.get("entry")) for row in dated.rows()[-2:]] == [("given_up", entry), ("reserved", None)]
    assert dated.charges(366) == [CHARGE, CHARGE]
    clock("2030-01-01")
    assert dated.charges(366) == [CHARGE]  # the open one
    assert len(dated.charges()) == 4
    with pytest.raises(LedgerError, match="settled already"):
        dated.settle(entry, 0)


def test_a_refused_reservation_gives_nothing_up(dated: Ledger) -> None:
    for _ in range(2):
        with pytest.raises(BudgetExceeded):
            spend(dated, give_up_open=True)
    assert len(dated.rows()) == 5


def test_a_clock_set_back_frees_nothing(dated: Ledger, clock: Callable[[str], None]) -> None:
    clock("2020-01-01")  # the battery was changed: a window that ends in 2020 still holds all later charges
    with pytest.raises(BudgetExceeded, match="any 366 days"):
        spend(dated)
    clock("2027-03-01")  # February's round is past, July's is not
    assert len(dated.charges(366)) == 1
    clock("2020-01-02")
    with pytest.raises(BudgetExceeded):
        spend(dated)


def test_a_charge_made_while_the_clock_was_behind_is_not_old_once_it_is_right(
    clock: Callable[[str], None], tmp_path: Path
) -> None:
    ledger = Ledger.create(tmp_path / "l.sqlite")
    clock("2020-06-01")
    for _ in range(2):
        spend(ledger)  # really run on 1 December 2026
    clock("2026-12-02")
    assert len(ledger.charges(366)) == 2  # nobody knows when: as of today
    with pytest.raises(BudgetExceeded):
        spend(ledger)
    spend_elsewhere = ledger.reserve(study="s", run="r", round=1, charge=CHARGE, budget=TOTAL, epsilon_of=steps_as_epsilon)
    ledger.settle(spend_elsewhere.id, 0)  # the first event of the right clock: they came before it
    clock("2027-12-02")
    assert len(ledger.charges(366)) == 2
    clock("2027-12-04")
    assert ledger.charges(366) == []


def test_replay_of_a_window_forgets_what_is_past(dated: Ledger, clock: Callable[[str], None]) -> None:
    clock("2027-06-01")
    spend(dated)
    history = dated.replay(1e-5, steps_as_epsilon, days=366)
    assert [epsilon for row, epsilon in history if row.kind == "settled"] == [1, 2, 2]
    assert [epsilon for row, epsilon in dated.replay(1e-5, steps_as_epsilon) if row.kind == "settled"] == [1, 2, 3]


def test_every_budget_stands_in_the_reservation(dated: Ledger) -> None:
    assert dated.rows()[1].facts["budgets"] == [
        {"epsilon": 5.0, "delta": 1e-5, "days": None}, {"epsilon": 2.0, "delta": 1e-5, "days": 366},
    ]
    assert reserve(dated, budget=Budget(math.inf, 1e-5))
    assert dated.rows()[-1].facts["budgets"] == [{"epsilon": None, "delta": 1e-5, "days": None}]


def test_export_can_be_checked_elsewhere(ledger: Ledger, tmp_path: Path) -> None:
    ledger.settle(reserve(ledger).id, 63)
    assert ledger.export(tmp_path / "out.jsonl") == 3
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert verify_export(lines).rows == ledger.rows()
    for bad in ([lines[0], lines[2]], [lines[0], lines[1].replace("63", "13")], ["{}"], []):
        with pytest.raises(LedgerError):
            verify_export(bad).last  # noqa: B018


def test_replay_tells_epsilon_after_every_event(ledger: Ledger) -> None:
    ledger.settle(reserve(ledger, 1).id, 63)
    ledger.settle(reserve(ledger, 2).id, 0)
    history = ledger.replay(1e-5, steps_as_epsilon)
    assert [(row.kind, epsilon) for row, epsilon in history] == [
        ("reserved", 1.0),
        ("settled", 1.0),
        ("reserved", 2.0),
        ("settled", 1.0),
    ]


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    def one(round: int) -> bool:
        try:
            ledger.settle(reserve(ledger, round).id, 63)
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(one, range(20))) == 8
    assert sum(charge.steps for charge in ledger.charges()) == 8 * 63


RACER = """
import sys, time
from pathlib import Path
from fedimaging.errors import BudgetExceeded
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger import Ledger
for path in sys.stdin:
    ledger = Ledger(Path(path.strip()))
    try:
        ledger.reserve(study="s", run="r", round=1, charge=Charge(1.0, 0.1, 63, "patient"), budget=Budget(1.0, 1e-5),
                       epsilon_of=lambda charges, delta: sum(c.steps for c in charges) / 63)
        print("won", flush=True)
    except BudgetExceeded:
        print("lost", flush=True)
"""


def race(tmp_path: Path, times: int) -> list[list[str]]:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = []
    for number in range(times):
        path = Ledger.create(tmp_path / f"{number}.sqlite").path
        for racer in racers:
            racer.stdin.write(f"{path}\n")
        for racer in racers:
            racer.stdin.flush()
        results.append(sorted(racer.stdout.readline().strip() for racer in racers))
    for racer in racers:
        racer.stdin.close()
        racer.stdout.close()
        racer.wait()
    return results


def test_two_processes_never_both_take_the_last_of_the_budget(tmp_path: Path) -> None:
    assert race(tmp_path, 10) == [["lost", "won"]] * 10


@pytest.mark.slow
def test_two_processes_race_a_hundred_times(tmp_path: Path) -> None:
    assert race(tmp_path, 100) == [["lost", "won"]] * 100


TRAINER = """
import os, sys
from pathlib import Path
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger import Ledger
folder = Path(sys.argv[1])
Ledger.open_or_create(folder / "ledger.sqlite")
ledger = Ledger(folder / "ledger.sqlite", durable=sys.argv[2] == "True")
print("up", flush=True)
ran = open(folder / "ran", "ab", buffering=0)
while True:
    entry = ledger.reserve(study="s", run="r", round=1, charge=Charge(1.0, 0.1, 5, "patient"),
                           budget=Budget(float("inf"), 1e-5), epsilon_of=lambda charges, delta: 0.0)
    for _ in range(5):
        ran.write(b".")  # one step on patients
    ledger.settle(entry.id, 5)
"""


def kill_and_resume(folder: Path, times: int, *, durable: bool = True) -> None:
    draw = random.Random(0)
    for _ in range(times):
        trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(folder), str(durable)], stdout=subprocess.PIPE)
        if draw.random() < 0.9:
            trainer.stdout.readline()
        time.sleep(draw.random() * 0.1)
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        trainer.stdout.close()
        ledger = Ledger.open_or_create(folder / "ledger.sqlite")
        charged = sum(charge.steps for charge in ledger.charges())
        assert charged >= (folder / "ran").stat().st_size if (folder / "ran").exists() else True
    crashes = times * 5
    assert charged <= (folder / "ran").stat().st_size + crashes


@pytest.mark.parametrize("durable", [True, False])
def test_killed_at_any_moment_no_step_goes_uncharged(durable: bool, tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 8, durable=durable)


def test_only_a_simulated_hospital_spares_itself_the_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[int]()
    monkeypatch.setattr(os, "fsync", synced.append)
    real = Ledger.create(tmp_path / "real.sqlite")
    of_creation = len(synced)
    entry = real.reserve(study="s", run="r", round=1, charge=CHARGE, budget=BUDGET, epsilon_of=lambda charges, delta: 0.0)
    real.settle(entry.id, 1)
    assert len(synced) > of_creation > 0
    synced.clear()
    simulated = Ledger.open_or_create(tmp_path / "simulated.sqlite")
    simulated.reserve(study="s", run="r", round=1, charge=CHARGE, budget=BUDGET, epsilon_of=lambda charges, delta: 0.0)
    assert synced == []
    assert [row.kind for row in Ledger.open_or_create(simulated.path).rows()] == ["created", "reserved"]


@pytest.mark.slow
def test_killed_two_hundred_times(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 200)


def test_bytes_that_were_verified_are_not_verified_again_and_others_are(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(ledger)
    read = list[int]()
    original = ledger_verify.read_rows

    def counted(database: sqlite3.Connection) -> list[ledger_events.Row]:
        rows = original(database)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(ledger_verify, "read_rows", counted)
    monkeypatch.setattr(ledger_module, "read_rows", counted)
    entry = reserve(Ledger(ledger.path), round=2)
    Ledger(ledger.path).settle(entry.id, 1)
    assert [row.kind for row in ledger.rows()] == ["created", "reserved", "reserved", "settled"]
    assert read == []
    with sqlite3.connect(ledger.path) as other:
        other.execute("PRAGMA user_version = 7")
    with pytest.raises(LedgerError, match="altered outside its events"):
        ledger.charges()
    assert read == [4]
