"""The image store: scans decoded once into flat files that every site and worker process maps into memory.

    <cache>/pixels-<key>/   images.npy, masks.npy, pixels.npz   one per content and preprocessing
    <cache>/<key>/          table.json, table.npz               one per table (labels, patients, splits) over those

so that another label column or another split decodes nothing again. Every folder is written under a temporary name and
renamed when it is complete: a half-written one is never seen, and of two makers of the same folder one wins.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from fedimaging.errors import DataError

_ABANDONED_SECONDS = 24 * 3600
_TEMPORARY = ".partial-"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Pixels:
    """One prepared scan: image (C, *spatial) float32, mask (*spatial) uint8 or None, spacing of its spatial axes or
    None.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    spacing_mm: tuple[float, ...] | None = None


def cache_root(cache_dir: Path | str | None) -> Path:
    """The folder of all stores: the argument, else FEDIMAGING_CACHE, else ~/.cache/fedimaging/store. Made if absent."""
    chosen = cache_dir or os.environ.get("FEDIMAGING_CACHE") or Path.home() / ".cache" / "fedimaging" / "store"
    root = Path(chosen)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"image store {root} cannot be made ({error.strerror}); set FEDIMAGING_CACHE elsewhere."
        ) from error
    return root


def key_of(*parts: object) -> str:
    """sha256 over JSON of `parts`: the name of what they determine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def workers() -> int:
    """How many threads decode: the processors this process may use. The result does not depend on it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[T], R], items: Iterable[T], block: int = 256) -> Iterator[R]:
    """`work` on every item by several threads, results in the order of the items, at most `block` of them waiting."""
    waiting: list[T] = []
    with ThreadPoolExecutor(workers()) as pool:
        for item in items:
            waiting.append(item)
            if len(waiting) == block:
                yield from pool.map(work, waiting)
                waiting = []
        yield from pool.map(work, waiting)


def write_pixels(root: Path, key: str, scans: Callable[[], Iterable[Pixels]], n: int) -> str:
    """Store the `n` scans under `key` unless they are there already, and return the folder's name.

    `scans` is called only if they have to be decoded. All must have one shape, and either all or none a mask.
    Raises DataError when the disk is full.
    """
    name = f"pixels-{key}"
    if not (root / name).is_dir():
        with _appearing(root / name) as folder:
            _write_arrays(folder, scans(), n)
    return name


def write_table(root: Path, key: str, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Path:
    """Store the table under `key` unless it is there already, and return its folder."""
    target = root / key
    if not target.is_dir():
        with _appearing(target) as folder:
            np.savez(folder / "table.npz", allow_pickle=False, **arrays)
            (folder / "table.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return target


def pixel_facts(root: Path, name: str) -> dict[str, np.ndarray]:
    """Per scan: `mask_max`, its greatest mask value (0 without masks), and `spacing_mm` (NaN where unknown)."""
    try:
        with np.load(root / name / "pixels.npz", allow_pickle=False) as facts:
            return {entry: facts[entry] for entry in facts.files}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{root / name} is not a complete store ({error}); delete it, it will be made again."
        ) from error


def _write_arrays(folder: Path, scans: Iterable[Pixels], n: int) -> None:
    """Stream the scans through ordinary writes: a full disk is then an error and not a killed process, as with a map."""
    mask_max, spacing = [], []
    with (folder / "images.npy").open("wb") as images, (folder / "masks.npy").open("wb") as masks:
        for i, scan in enumerate(scans):
            if i == 0:
                _header(images, (n, *scan.image.shape), np.dtype(np.float32))
                if scan.mask is not None:
                    _header(masks, (n, *scan.mask.shape), np.dtype(np.uint8))
            images.write(np.ascontiguousarray(scan.image, dtype=np.float32).data)
            if scan.mask is not None:
                masks.write(np.ascontiguousarray(scan.mask, dtype=np.uint8).data)
            mask_max.append(0 if scan.mask is None else int(scan.mask.max()))
            spacing.append(scan.spacing_mm or [np.nan] * (scan.image.ndim - 1))
    np.savez(folder / "pixels.npz", mask_max=np.array(mask_max), spacing_mm=np.array(spacing, dtype=np.float64))


def _header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends well, and vanishes when it does not."""
    _sweep(target.parent)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
        yield folder
        for file in folder.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        _rename(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"no space left for image store {target.parent}; free some or set FEDIMAGING_CACHE elsewhere."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise DataError(
                f"image store {target.parent} cannot be written; set FEDIMAGING_CACHE elsewhere."
            ) from error
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path, target: Path) -> None:
    """A folder of that name already there was made by another process meanwhile, from the same content: keep it."""
    folder.chmod(0o755)  # mkdtemp makes it private; the store is shared like its parent
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _sweep(root: Path) -> None:
    """Remove what a killed process left behind, once nobody can still be writing to it."""
    for left in root.glob(f"{_TEMPORARY}*"):
        try:
            touched = max(entry.stat().st_mtime for entry in (left, *left.iterdir()))
        except FileNotFoundError:  # renamed or removed by its maker this moment
            continue
        if time.time() - touched > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
