"""The store appears whole or not at all, once per content, whoever makes it."""

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from fedimaging.data.store import Pixels, cache_root, in_order, key_of, pixel_facts, write_pixels, write_table
from fedimaging.errors import DataError


def scans(n: int = 3) -> Iterator[Pixels]:
    for i in range(n):
        yield Pixels(np.full((1, 2, 2), i, np.float32), np.full((2, 2), i, np.uint8), (1.0, 2.0))


def test_pixels_are_written_once(tmp_path: Path) -> None:
    name = write_pixels(tmp_path, "k", scans, 3)
    assert np.load(tmp_path / name / "images.npy")[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert np.load(tmp_path / name / "masks.npy").shape == (3, 2, 2)
    assert pixel_facts(tmp_path, name)["mask_max"].tolist() == [0, 1, 2]
    assert pixel_facts(tmp_path, name)["spacing_mm"].tolist() == [[1.0, 2.0]] * 3

    def never() -> Iterator[Pixels]:
        raise AssertionError("decoded again")

    assert write_pixels(tmp_path, "k", never, 3) == name


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), ValueError("broken"), DataError("broken")])
def test_nothing_half_written_stays(tmp_path: Path, fault: BaseException) -> None:
    def breaks() -> Iterator[Pixels]:
        yield from scans(2)
        raise fault

    with pytest.raises(type(fault)):
        write_pixels(tmp_path, "k", breaks, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    def full() -> Iterator[Pixels]:
        yield from scans(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"no space left.*FEDIMAGING_CACHE"):
        write_pixels(tmp_path, "k", full, 3)
    assert list(tmp_path.iterdir()) == []


def test_two_makers_at_once_give_one_store(tmp_path: Path) -> None:
    together = Barrier(2)

    def slow() -> Iterator[Pixels]:
        together.wait()
        yield from scans(3)
        together.wait()

    with ThreadPoolExecutor(2) as pool:
        names = list(pool.map(lambda _: write_pixels(tmp_path, "k", slow, 3), range(2)))
    assert names == ["pixels-k", "pixels-k"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["pixels-k"]
    assert np.load(tmp_path / "pixels-k" / "images.npy").shape == (3, 1, 2, 2)


def test_what_a_killed_maker_left_is_swept_up_later(tmp_path: Path) -> None:
    old, new = tmp_path / ".partial-old", tmp_path / ".partial-new"
    for left in (old, new):
        left.mkdir()
        (left / "images.npy").write_bytes(b"half")
    long_ago = time.time() - 3 * 24 * 3600
    for entry in (old / "images.npy", old):
        os.utime(entry, (long_ago, long_ago))
    write_table(tmp_path, "t", {"a": np.arange(2)}, {})
    assert not old.exists()
    assert new.exists()


def test_the_cache_is_argument_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDIMAGING_CACHE", str(tmp_path / "of_environment"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root(None) == tmp_path / "of_environment"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="FEDIMAGING_CACHE"):
        cache_root(tmp_path / "file" / "below")


def test_results_keep_the_order_of_the_items() -> None:
    def late_first(i: int) -> int:
        time.sleep(0.01 if i % 2 == 0 else 0)
        return i

    assert list(in_order(late_first, range(20), block=6)) == list(range(20))


def test_keys_differ_with_any_part() -> None:
    assert key_of("a", 1) == key_of("a", 1)
    assert len({key_of("a", 1), key_of("a", 2), key_of("a", "1"), key_of("a1")}) == 4
