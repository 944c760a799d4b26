import json
from pathlib import Path

import pytest

from fedimaging.errors import LedgerError
from fedimaging.site.audit_log import AuditLog, read


def _three(path: Path) -> None:
    for number in range(3):
        AuditLog(path, durable=number == 0).write("trained", round=number, study="abc")


def test_events_come_back_in_order_across_reopening(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    _three(path)
    events = read(path)
    assert [event["round"] for event in events] == [0, 1, 2]
    assert [event["sequence"] for event in events] == [0, 1, 2]


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


def test_a_line_cut_short_by_a_crash_is_dropped_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    _three(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read(path)) == 2
    AuditLog(path).write("trained", round=7)
    assert [event["round"] for event in read(path)] == [0, 1, 7]


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []
