"""What a worker of a sweep does with a task."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedimaging.runs.sweep_grid import PlannedRun
from fedimaging.runs.sweep_worker import do, task_of
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]


def _run(study: Study, **more: Any) -> PlannedRun:
    return PlannedRun("one", study, math.inf, "", 0, (), **more)


def test_a_run_is_done_with_its_baselines_and_told_round_by_round(tiny_study: MakeStudy, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    task = task_of("run", _run(tiny_study("privacy=null"), baselines=True), tmp_path / "run")
    assert do(json.loads(json.dumps(task)), events.append) == {"kind": "done", "run": "one"}
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert set(report["baselines"]) == {"pooled", "local_only"}
    assert report["workers"] == 1
    told = [(event["arm"], event["round"], event["of"]) for event in events if event["kind"] == "round"]
    assert told == [("federated", 1, 2), ("federated", 2, 2), ("pooled", 1, 2), ("pooled", 2, 2)]
    assert not (tmp_path / "run" / "report.html").exists()
    before = (tmp_path / "run" / "report.json").stat().st_mtime_ns
    assert do(task, events.append)["kind"] == "done"
    assert (tmp_path / "run" / "report.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("override", "fault", "words"), [
    ("policy.budget_epsilon=2", "StudyError", "policy.budget_epsilon=2.0 is below"),
    ("privacy.delta=0.5", "PrivacyError", "delta"),
    ("evaluation.groups=[clinic]", "DataError", "clinic"),
    ("evaluation.metric=luck", "StudyError", "luck"),
])
def test_a_check_refuses_what_a_run_would_and_trains_nothing(
    override: str, fault: str, words: str, tiny_study: MakeStudy, tmp_path: Path
) -> None:
    found = do(task_of("check", _run(tiny_study(override)), tmp_path / "run"))
    assert (found["kind"], found["fault"]) == ("failed", fault)
    assert words in found["text"]
    assert do(task_of("check", _run(tiny_study()), tmp_path / "run")) == {"kind": "done", "run": "one"}
    assert not (tmp_path / "run").exists()
