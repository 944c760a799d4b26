"""Files that appear whole or not at all, and what is left where their writer was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedimaging.errors import RunError
from fedimaging.files import append_line, remove_cut_short, write_text, write_whole

_KILLED = """
import os, sys
from pathlib import Path
from fedimaging.files import write_whole
write_whole(Path(sys.argv[1]), lambda temporary: (temporary.write_text("half of"), os._exit(9)))
"""


def _killed_while_writing(path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False).returncode == 9


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_killed_writer_leaves_the_old_file_and_what_it_left_is_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "study.yaml", "old")
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "study.yaml", tmp_path / "run.json", tmp_path / "below" / "model"):
        _killed_while_writing(path)
    others = (".vimrc.part", ".film.4k.part", "song.12.part")
    for name in others:
        (tmp_path / name).write_text("mine")
    assert (tmp_path / "study.yaml").read_text() == "old"
    assert len(_names(tmp_path)) == 4 + len(others)
    remove_cut_short(tmp_path, "study.yaml")
    assert len(_names(tmp_path)) == 3 + len(others)
    remove_cut_short(tmp_path)
    assert _names(tmp_path) == sorted(("study.yaml", *others))


def test_a_writer_that_fails_leaves_nothing_and_says_what_the_system_said(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_text("half of")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"no space left on the disk that holds .*study\.yaml"):
        write_whole(tmp_path / "study.yaml", fail)
    assert _names(tmp_path) == []


def test_a_line_after_one_that_was_cut_short_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "first")
    path.write_text(path.read_text() + "sec")
    append_line(path, "third")
    assert path.read_text().splitlines() == ["first", "sec", "third"]
