"""What is measured of a machine is measured once."""

from pathlib import Path
from typing import Any

import pytest

from fedimaging.runs.machine import remembered


def test_what_was_measured_is_remembered_for_the_same_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDIMAGING_CACHE", str(tmp_path))
    asked: list[int] = []

    def measure() -> dict[str, Any]:
        asked.append(1)
        return {"workers": len(asked)}

    assert [remembered(what, measure)["workers"] for what in (["a"], ["a"], ["b"], ["a"])] == [1, 1, 2, 1]
    for path in (tmp_path / "measured").iterdir():
        path.write_text("{cut sho")  # a file that cannot be read is made again
    assert remembered(["a"], measure) == {"workers": 3}
