"""Content decides; size and times only spare the reading."""

import hashlib
import os
from pathlib import Path

import pytest

from fedimaging.data.hashing import digests
from fedimaging.errors import DataError


def test_digest_of_a_file_is_sha256(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"pixels")
    assert digests([file, file], tmp_path) == [hashlib.sha256(b"pixels").hexdigest()] * 2


def test_a_settled_file_is_remembered_until_it_changes(tmp_path: Path) -> None:
    cache, file = tmp_path / "cache", tmp_path / "x.png"
    cache.mkdir()
    file.write_bytes(b"before")
    os.utime(file, (1e9, 1e9))
    first = digests([file], cache)
    memory = cache / "hashes.json"
    memory.write_text(memory.read_text().replace(first[0], "remembered"))
    assert digests([file], cache) == ["remembered"]
    file.write_bytes(b"after!")
    os.utime(file, (1e9, 1e9))  # same size and time of change: the inode's own clock still tells
    assert digests([file], cache) == [hashlib.sha256(b"after!").hexdigest()]
    memory.write_text("{broken")
    assert digests([file], cache) == [hashlib.sha256(b"after!").hexdigest()]


def test_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    cache, series = tmp_path / "cache", tmp_path / "series"
    cache.mkdir()
    series.mkdir()
    (series / "1.dcm").write_bytes(b"a")
    before = digests([series], cache)
    (series / "1.dcm").rename(series / "2.dcm")
    assert digests([series], cache) != before


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        digests([tmp_path / "gone.png"], tmp_path)
