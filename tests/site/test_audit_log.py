import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedimaging import __version__
from fedimaging.errors import LedgerError, RunError
from fedimaging.site.audit_log import AuditLog, read, verdict


def _three(path: Path) -> None:
    for number in range(3):
        AuditLog(path, durable=number == 0).write("trained", round=number, study="abc")


def test_events_come_back_in_order_across_reopening(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    _three(path)
    events = read(path)
    assert [event["round"] for event in events] == [0, 1, 2]
    assert [event["sequence"] for event in events] == [0, 1, 2]
    assert {event["version"] for event in events} == {__version__}


@pytest.mark.parametrize("harm", ["change", "remove", "swap", "insert"])
def test_any_alteration_breaks_the_chain(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    _three(path)
    lines = path.read_text().splitlines()
    if harm == "change":
        lines[1] = lines[1].replace('"round": 1', '"round": 9')
    elif harm == "remove":
        del lines[1]
    elif harm == "swap":
        lines[0], lines[1] = lines[1], lines[0]
    else:
        lines.insert(1, json.dumps({"event": "x"}))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match="chain"):
        read(path)


@pytest.mark.parametrize("line", ["{", "[1]", '"x"', "\xff"])
def test_what_is_no_event_is_told(line: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    _three(path)
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(LedgerError, match="line 4 is not JSON"):
        read(path)
    with pytest.raises(RunError, match="its last line is no event; restore it"):
        AuditLog(path).write("x")


def test_a_line_cut_short_by_a_crash_is_dropped_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    _three(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read(path)) == 2
    AuditLog(path).write("trained", round=7)
    assert [event["round"] for event in read(path)] == [0, 1, 7]


def test_a_first_line_cut_short_is_dropped_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"event": "tra')
    AuditLog(path).write("trained", round=1)
    assert [event["round"] for event in read(path)] == [1]


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []


def test_two_logs_of_one_file_write_one_chain(tmp_path: Path) -> None:
    """As a running hospital and `site approve` do."""
    one, other = AuditLog(tmp_path / "a.jsonl"), AuditLog(tmp_path / "a.jsonl")
    for number in range(4):
        (one, other)[number % 2].write("x", number=number, text="y" * 70_000)  # longer than a block
    assert [event["number"] for event in read(tmp_path / "a.jsonl")] == [0, 1, 2, 3]


def _write_ten(path: Path) -> None:
    log = AuditLog(path, durable=False)
    for _ in range(10):
        log.write("x")


def test_processes_side_by_side_write_one_chain(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_write_ten, [tmp_path / "a.jsonl"] * 3))
    assert len(read(tmp_path / "a.jsonl")) == 30


def test_a_full_disk_leaves_whole_lines_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, path = AuditLog(tmp_path / "a.jsonl"), tmp_path / "a.jsonl"
    log.write("x")

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"cannot be written: No space .* free some space"):
            log.write("y")
    assert len(read(path)) == 1
    assert path.read_bytes().endswith(b"\n")
    log.write("z")
    assert [event["event"] for event in read(path)] == ["x", "z"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_disk_that_takes_part_of_a_line_leaves_a_log_that_goes_on(share: float, tmp_path: Path) -> None:
    """A real short write, by the system's own limit of a file's size."""
    path = tmp_path / "a.jsonl"
    log = AuditLog(path)
    log.write("x")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(path.stat().st_size * (1 + share)), before[1]))
    try:
        for _ in range(3):
            with pytest.raises(RunError, match="cannot be written"):
                log.write("y")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [event["event"] for event in read(path)] == ["x"]
    log.write("z")
    assert [event["event"] for event in read(path)] == ["x", "z"]


def test_a_flood_of_refusals_is_counted_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = AuditLog(tmp_path / "a.jsonl", durable=False)
    for _ in range(1000):
        log.write("refused", study="", code="study_not_approved")
    log.write("refused", study="", code="wrong_shape")
    for _ in range(30):
        log.write("released", round=1)
    now[0] = 59.0
    log.write("refused", study="", code="study_not_approved")
    now[0] = 60.0
    for _ in range(2):
        log.write("refused", study="", code="study_not_approved")
    events = read(tmp_path / "a.jsonl")
    assert [event["event"] for event in events].count("released") == 30
    refused = [event for event in events if event["event"] == "refused" and event["code"] == "study_not_approved"]
    assert len(refused) == 22
    assert [event.get("unwritten") for event in refused] == [None] * 20 + [981, None]
    assert len(events) == 22 + 1 + 30


CHECK = """
import sys
class No:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in sys.stdlib_module_names | {"fedimaging"}:
            raise ImportError(name)
sys.meta_path.insert(0, No())
from fedimaging.site.verify_log import main
sys.exit(main(sys.argv[1:]))
"""


def _verified(path: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", CHECK, str(path)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_log_is_verified_with_the_standard_library_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    _three(path)
    assert _verified(path) == (0, verdict(path) + "\n")
    assert verdict(path).startswith("in order: 3 events, last 20")
    assert verdict(path).endswith(read(path)[-1]["hash"])
    path.write_text(path.read_text().replace('"round": 1', '"round": 9'))
    assert _verified(path) == (1, "NOT IN ORDER: audit log audit.jsonl line 2 breaks the hash chain; the log was altered.\n")
    code, said = _verified(tmp_path / "none")
    assert (code, "does not exist" in said) == (1, True)
