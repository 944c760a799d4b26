"""Which worker does what."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedimaging.runs import sweep_pool
from fedimaging.runs.sweep_pool import Pool

ECHO = """
import json, os, sys, time
print(json.dumps({"kind": "ready"}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    time.sleep(task.get("seconds", 0.02))
    if task.get("dies"):
        os._exit(9)
    print(json.dumps({"kind": "done", "run": task["run"], "worker": os.getpid()}), flush=True)
"""


@pytest.fixture(autouse=True)
def _echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers that do nothing, quickly."""
    (tmp_path / "echo.py").write_text(ECHO)
    monkeypatch.setattr(sweep_pool, "WORKER", (str(tmp_path / "echo.py"),))


def _task(run: str, cell: str = "", **more: Any) -> dict[str, Any]:
    return {"run": run, "cell": cell, **more}


def _done(pool: Pool, tasks: list[dict[str, Any]]) -> dict[str, int]:
    events = list(pool.work_off(tasks))
    assert [event["run"] for event in events if event["kind"] == "started"][: len(tasks)]
    return {event["run"]: event.get("worker", 0) for event in events if event["kind"] == "done"}


def test_every_task_is_done_once_and_workers_are_used_again(tmp_path: Path) -> None:
    with Pool(2, tmp_path / "log") as pool:
        first = _done(pool, [_task(str(k)) for k in range(12)])
        again = _done(pool, [_task(str(k)) for k in range(4)])
    assert list(map(int, sorted(first, key=int))) == list(range(12))
    assert set(again.values()) <= set(first.values())
    assert len(set(first.values())) == 2


def test_a_worker_keeps_to_the_cells_it_knows_and_helps_out_at_the_end(tmp_path: Path) -> None:
    tasks = [_task(f"{cell}{k}", cell) for k in range(3) for cell in "ab"]
    with Pool(2, tmp_path / "log") as pool:
        for cell in "ab":  # both know a cell each
            _done(pool, [_task(f"warm {cell}", cell, seconds=0.3), _task("warm other", "ab".replace(cell, ""), seconds=0.3)])
        done = _done(pool, tasks)
        assert len({done[f"a{k}"] for k in range(3)}) == 1
        assert {done["a0"], done["b0"]} == set(done.values())
        stolen = _done(pool, [_task(f"long {k}", "a", seconds=0.2) for k in range(6)])
    assert len(set(stolen.values())) == 2


def test_a_task_whose_process_dies_twice_has_failed_and_the_others_are_done(tmp_path: Path) -> None:
    with Pool(1, tmp_path / "log") as pool:
        events = list(pool.work_off([_task("bad", dies=True), _task("good")]))
    ended = {event["run"]: event["kind"] for event in events if event["kind"] in ("done", "failed")}
    assert ended == {"bad": "failed", "good": "done"}
    failed = next(event for event in events if event["kind"] == "failed")
    assert "died 2 times, last with code 9" in failed["text"]
    json.dumps(events)


def test_workers_that_cannot_start_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_pool, "WORKER", ("-c", "raise SystemExit(5)"))
    with Pool(1, tmp_path / "log") as pool:
        last = list(pool.work_off([_task("a")]))[-1]
    assert (last["kind"], last["run"]) == ("failed", "a")
    assert "last with code 5" in last["text"]
