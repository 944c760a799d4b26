"""Whose a sweep folder is."""

import math
from pathlib import Path

import pytest

from fedimaging.errors import RunError
from fedimaging.runs.sweep_dir import SweepDir
from fedimaging.runs.sweep_grid import PlannedRun
from tests.runs.made_up_sweep import planned, report, write


def _take(folder: SweepDir, runs: list[PlannedRun], *, baselines: bool = True) -> None:
    with folder.held(runs, baselines=baselines):
        folder.write_plan(runs, {"baselines": baselines})


def test_a_sweep_may_grow_and_may_not_shrink_or_change(tmp_path: Path) -> None:
    folder, runs = SweepDir(tmp_path / "sweep"), planned((1.0, math.inf), 1)
    _take(folder, runs)
    _take(folder, planned((1.0, 8.0, math.inf), 2, units=("patient", "record")))
    with pytest.raises(RunError, match=r"has the run 'epsilon_1-patient-seed_1', which is not asked for now"):
        _take(folder, runs)
    wider = planned((1.0, 8.0, math.inf), 2, units=("patient", "record"), overrides=("federation.rounds=3",))
    with pytest.raises(RunError, match=r"from another study .*differs in more than budget"):
        _take(folder, wider)


def test_with_and_without_baselines_are_two_sweeps(tmp_path: Path) -> None:
    folder, runs = SweepDir(tmp_path / "sweep"), planned((1.0, math.inf), 1)
    _take(folder, runs)
    with pytest.raises(RunError, match="begun with baselines"):
        _take(folder, runs, baselines=False)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with pytest.raises(RunError, match=r"holds no sweep \(it has 'dear.txt'\)"):
        _take(SweepDir(tmp_path / "letters"), planned())
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        _take(SweepDir(tmp_path / "file" / "sweep"), planned())
    folder = SweepDir(tmp_path / "broken")
    folder.path.mkdir()
    (folder.path / "sweep.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        _take(folder, planned())


def test_a_sweep_that_was_killed_while_it_wrote_its_first_file_begins_anew(tmp_path: Path) -> None:
    folder = SweepDir(tmp_path / "sweep")
    folder.path.mkdir()
    (folder.path / ".sweep.json.4458.part").write_text("{")
    _take(folder, planned())
    (folder.path / ".table.md.4458.part").write_text("|")
    _take(folder, planned())
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "sweep.json"]


def test_two_sweeps_may_not_work_in_one_folder(tmp_path: Path) -> None:
    folder, runs = SweepDir(tmp_path / "sweep"), planned()
    with folder.held(runs, baselines=True):
        folder.write_plan(runs, {"baselines": True})
        with pytest.raises(RunError, match="in use by another process"):
            _take(SweepDir(tmp_path / "sweep"), runs)


def test_a_sweep_that_was_refused_leaves_no_folder(tmp_path: Path) -> None:
    folder = SweepDir(tmp_path / "sweep")

    def refuse() -> None:
        with folder.held(planned(), baselines=True):
            folder.log.write_text("something")
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        refuse()
    assert not folder.path.exists()


def test_a_run_is_done_once_its_report_and_its_audit_are_there(tmp_path: Path) -> None:
    folder, (audited, plain) = SweepDir(tmp_path / "sweep"), planned((math.inf,), 2, audit=True)
    assert not folder.is_done(plain)
    for run in (audited, plain):
        write(folder, run, report(run, 0.9))
    assert (folder.is_done(audited), folder.is_done(plain)) == (False, True)
    (folder.run(audited) / "audit.json").write_text("{}")
    assert folder.is_done(audited)
