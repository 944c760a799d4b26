"""What a hospital's officer sees of its ledger, by the functions and by the command line."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedimaging.cli import app
from fedimaging.errors import LedgerError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.ledger_text import create, export, replay, show
from fedimaging.privacy.ledger_verify import verify_export

CHARGE = Charge(1.0, 0.016, 63, "patient")


def steps_as_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """A stand-in for accounting: 1 per 63 steps."""
    return sum(charge.steps for charge in charges) / 63


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One round settled, one cut short, and one of records."""
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    for number, charge in enumerate((CHARGE, CHARGE, Charge(2.0, 0.1, 10, "record", scans_per_patient=4)), start=1):
        entry = ledger.reserve(
            study="f" * 64, run="federated", round=number, charge=charge, budget=Budget(8.0, 1e-5), epsilon_of=steps_as_epsilon
        )
        if number == 1:
            ledger.settle(entry.id, 60, released={"update": 3208})
    return ledger


def test_show_tells_every_event_and_the_sum(ledger: Ledger) -> None:
    lines = show(ledger.path)
    words = [line.split("  ", 2)[-1].strip() for line in lines]
    assert words[0].startswith("2") or "created ledger" in lines[0]
    assert "reserved 63 steps, sigma 1, q 0.016, unit patient for round 1 of federated ffffffffffff" in lines[1]
    assert "settled 2: 60 steps were run" in lines[2]
    assert "released update, 3,208 bytes, under 2" in lines[3]
    assert "unit record (a patient has up to 4) for round 3" in lines[5]
    assert "charged: 123 steps, sigma 1, q 0.016, unit patient" in lines
    assert "charged: 10 steps, sigma 2, q 0.1, unit record" in lines
    assert "not settled (at work, or cut short by a crash), and charged in full: 5, 6" in lines
    assert lines[-1] == f"in order: 6 events, last {ledger.verify().time}, head {ledger.verify().hash}"


def test_what_was_given_up_is_told_and_still_charged(ledger: Ledger) -> None:
    ledger.reserve(
        study="f" * 64, run="federated", round=4, charge=CHARGE, budget=Budget(8.0, 1e-5), epsilon_of=steps_as_epsilon,
        give_up_open=True,
    )
    lines = show(ledger.path)
    assert "gave up 5, which a crash cut short: charged in full" in lines[6]
    assert "charged: 186 steps, sigma 1, q 0.016, unit patient" in lines
    assert "not settled (at work, or cut short by a crash), and charged in full: 9" in lines


def test_nothing_spent_is_told(tmp_path: Path) -> None:
    create(tmp_path / "ledger.sqlite")
    assert "charged: nothing" in show(tmp_path / "ledger.sqlite")
    assert replay(tmp_path / "ledger.sqlite", 1e-5, steps_as_epsilon) == [
        "epsilon 0.0000 at delta 1e-05 for each patient, from 0 events"
    ]


def test_replay_computes_epsilon_again_after_each_event(ledger: Ledger) -> None:
    lines = replay(ledger.path, 1e-5, steps_as_epsilon)
    assert [line.rsplit("epsilon ", 1)[1] for line in lines[:-1]] == ["1.0000", "0.9524", "1.9524", "2.1112"]
    assert lines[-1] == "epsilon 2.1112 at delta 1e-05 for each patient, from 4 events"


def test_replay_of_records_alone_says_so(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    charge = Charge(0.0, 1.0, 1, "record")
    ledger.reserve(study="s", run="r", round=1, charge=charge, budget=Budget(float("inf"), 1e-5), epsilon_of=steps_as_epsilon)
    assert replay(ledger.path, 1e-5, epsilon)[-1] == "epsilon infinity at delta 1e-05 for each record, from 1 events"


def test_what_cannot_be_written_is_one_clear_error(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot write"):
        export(ledger.path, tmp_path / "no folder" / "out.jsonl")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["ledger", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_agree_with_the_standalone_check(ledger: Ledger, tmp_path: Path) -> None:
    alone = subprocess.run(
        [sys.executable, "-m", "fedimaging.privacy.ledger_verify", str(ledger.path)], capture_output=True, text=True, check=True
    )
    assert run("verify", ledger.path) == alone.stdout
    assert run("show", ledger.path).endswith(alone.stdout)
    assert run("export", ledger.path, "--out", tmp_path / "out.jsonl") == f"6 events written to {tmp_path / 'out.jsonl'}\n"
    assert verify_export((tmp_path / "out.jsonl").read_text().splitlines()).rows == ledger.rows()
    spent = epsilon(ledger.charges(), 1e-5)
    told = run("replay", ledger.path, "--delta", "1e-5").splitlines()[-1]
    assert spent <= float(told.split()[1]) < spent + 2e-4


def test_a_new_ledger_is_made_once(tmp_path: Path) -> None:
    path, head = tmp_path / "ledger.sqlite", tmp_path / "elsewhere.head"
    assert run("create", path, "--head", head).startswith("in order: 1 events")
    assert run("verify", path, "--head", head).startswith("in order: 1 events")
    again = CliRunner().invoke(app, ["ledger", "create", str(path), "--head", str(head)])
    assert isinstance(again.exception, LedgerError)


@pytest.mark.parametrize("command", [["show"], ["verify"], ["export", "--out", "x"], ["replay", "--delta", "1e-5"]])
def test_an_altered_ledger_stops_every_command(command: list[str], ledger: Ledger) -> None:
    content = bytearray(ledger.path.read_bytes())
    content[-100] ^= 1
    ledger.path.write_bytes(content)
    result = CliRunner().invoke(app, ["ledger", command[0], str(ledger.path), *command[1:]])
    assert isinstance(result.exception, LedgerError)
    assert not Path("x").exists()
