"""What the files say happened, in facts and in words; an altered file is told and shows nothing."""

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from fedimaging.errors import LedgerError, SiteRefusal
from fedimaging.privacy import ledger_events
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Charge
from fedimaging.site import approvals, audit_log
from fedimaging.site.folder import SiteFolder
from fedimaging.site.hospital import open_hospital_site
from fedimaging.site.record import read_record, rounded_up
from fedimaging.site.site import TrainInstruction
from fedimaging.site.status import event_lines, ledger_lines, log_lines, status, status_lines, study_lines
from fedimaging.study.load import load

from .making import hospital, pictures, set_policy, study_file


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the hospital's clock, of ledger and log, to noon of a day."""

    def set_to(day: str) -> None:
        moment = datetime.fromisoformat(day + "T12:00:00+00:00")
        monkeypatch.setattr(ledger_events, "clock", lambda: moment)
        monkeypatch.setattr("fedimaging.site.record.clock", lambda: moment)
        monkeypatch.setattr(audit_log.time, "time", moment.timestamp)

    return set_to


@pytest.fixture
def folder(tmp_path: Path, clock: Callable[[str], None]) -> SiteFolder:
    """Approved in 2024, a round and an evaluation each in 2024 and 2026, some refusals."""
    clock("2024-01-01")
    study = study_file(tmp_path / "study.yaml")
    made = hospital(tmp_path / "north", pictures(tmp_path / "data"), study, release_evaluation="metrics")
    site = open_hospital_site(made, load(study).fingerprint)
    for day, round in (("2024-03-01", 1), ("2026-05-01", 2)):
        clock(day)
        instruction = TrainInstruction(site.fingerprint, round, site.bench.initial)
        site.train(instruction)
        site.evaluate(instruction, final=False)
    for asked in ("f" * 64, "f" * 64, "?"):
        with pytest.raises(SiteRefusal):
            open_hospital_site(made, asked)
    return made


def test_what_left_is_told_with_its_cost(folder: SiteFolder) -> None:
    record = read_record(folder)
    assert record.in_order
    assert [(one.what, one.how, one.round) for one in record.left] == [
        ("update", "", 1), ("evaluation", "metrics", 1), ("update", "", 2), ("evaluation", "metrics", 2)]
    update, evaluation = record.left[2:]
    assert update.epsilon is not None
    assert update.epsilon >= epsilon(folder.ledger().charges(), 1e-4) > (record.left[0].epsilon or 9.0)
    assert (evaluation.size, evaluation.norm, evaluation.epsilon) == (24, None, None)
    assert record.refusals == [("", "study_not_approved", 1, record.events[-1]["time"]),
                               ("f" * 64, "study_not_approved", 2, record.events[-1]["time"])]
    assert record.missing == 0


def test_epsilon_over_time_grows_in_total_and_falls_in_the_year(folder: SiteFolder, clock: Callable[[str], None]) -> None:
    clock("2026-06-01")
    record = read_record(folder)
    one, both = (epsilon([Charge(1.0, 0.5, steps, "patient")], 1e-4) for steps in (2, 4))
    days = [time.strftime("%Y-%m-%d", time.gmtime(point[0])) for point in record.curve]
    assert days == ["2024-03-01", "2025-03-02", "2026-05-01", "2026-06-01"]
    np.testing.assert_allclose([point[1] for point in record.curve], [one, one, both, both], rtol=0.02)
    np.testing.assert_allclose([point[2] for point in record.curve], [one, 0, one, one], rtol=0.02)
    assert record.years.keys() == {2024, 2026}
    np.testing.assert_allclose(list(record.years.values()), one, rtol=0.02)
    assert [round(spent.epsilon, 3) for spent in record.spent] == [round(both, 3), round(one, 3)]


def test_the_words_on_the_terminal(folder: SiteFolder) -> None:
    spent = rounded_up(read_record(folder).spent[0].epsilon)
    lines = status_lines(folder)
    assert lines[0] == "north, which joins localhost:8443"
    assert lines[1:4] == ["ledger: in order", "audit log: in order", "approvals: in order"]
    assert lines[4] == f"epsilon in total: {spent} of 50 (delta 0.0001)"
    assert "tiny: approved by Dr. A on 2024-01-01" in lines[6]
    assert lines[6].endswith("(test); updates of 2 rounds have left")
    assert "refused 1 x study_not_approved, last on 2026-05-01" in lines[7]
    assert "refused 2 x study_not_approved (study ffffffffffff), last on 2026-05-01" in lines[8]
    assert lines[9].startswith("last event: refused, 2026-05-01")
    assert study_lines(folder) == [lines[6]]
    table = [line.split() for line in log_lines(folder)]
    assert table[0] == ["when", "study", "round", "what", "bytes", "norm", "epsilon"]
    assert [row[2:5] for row in table[1:]] == [["tiny", "1", "update"], ["tiny", "1", "evaluation"],
                                               ["tiny", "2", "update"], ["tiny", "2", "evaluation"]]  # fmt: skip
    assert table[3][-1] == spent
    assert ledger_lines(folder)[-2] == f"epsilon in total: {spent} of 50 at delta 0.0001, for each patient"
    assert any("  trained  noise secure, resumed False, round 1, steps 2, study" in line for line in event_lines(folder))
    set_policy(folder, allow_simulated_noise=True)
    assert status_lines(folder)[-1].startswith("TEST MODE")
    assert status(folder)["budgets"][1]["days"] == 366


def test_a_new_folder_has_nothing_to_tell(tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", tmp_path)
    assert status_lines(folder)[6:] == ["no study was ever approved", status_lines(folder)[-1]]
    assert log_lines(folder) == ["nothing has left this hospital"]
    assert study_lines(folder) == ["no study was ever approved"]


def test_altered_files_are_told_and_show_nothing(folder: SiteFolder) -> None:
    folder.audit_file.write_text(folder.audit_file.read_text().replace('"round": 1', '"round": 3', 1))
    lines = log_lines(folder)
    assert lines[0] == "nothing has left this hospital"
    assert lines[1].startswith("audit log NOT IN ORDER: audit log audit.jsonl line")
    assert "2 release(s) without a line here" in lines[2]
    folder.ledger_head.unlink()
    assert not read_record(folder).in_order
    assert read_record(folder).spent == read_record(folder).curve == ()
    assert any(line.startswith("ledger: NOT IN ORDER") for line in status_lines(folder))
    with pytest.raises(LedgerError):
        ledger_lines(folder)
    folder.approvals_file.write_text("{}\n")
    assert read_record(folder).studies == {}


def test_lines_cut_off_at_the_end_of_the_log_show_in_the_ledger(folder: SiteFolder) -> None:
    lines = folder.audit_file.read_text().splitlines(keepends=True)
    cut = next(k for k, line in enumerate(lines) if '"event": "released"' in line and '"round": 2' in line)
    folder.audit_file.write_text("".join(lines[:cut]))
    record = read_record(folder)
    assert (record.in_order, record.missing) == (True, 1)
    assert "1 release(s) without a line here: a crash" in log_lines(folder)[-1]


def test_a_revoked_study_says_so(folder: SiteFolder) -> None:
    [approval] = approvals.newest(folder).values()
    approvals.revoke(folder, approval.study, who="Dr. B", why="over")
    assert "REVOKED by Dr. B" in study_lines(folder)[0]


@pytest.mark.parametrize(("epsilon", "said"), [(1.0, "1"), (1.0001, "1.01"), (7.98, "7.98"), (float("inf"), "without limit")])
def test_epsilon_is_never_rounded_down(epsilon: float, said: str) -> None:
    assert rounded_up(epsilon) == said
