"""A prepared data set: arrays of one length, one entry a scan, whose pixels stay on disk until they are read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from fedimaging.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Dataset:
    """N scans and what is known of them. The arrays share their first axis.

    images: (N, C, *spatial) float32, memory-mapped copy-on-write, so that writing to it never reaches the store.
    labels: (N,) int64 class indices, (N, L) float32 zeros and ones, or None without a label.
    masks: (N, *spatial) uint8 class indices, memory-mapped, or None without masks.
    patient_ids, split: (N,) str; split is train, validation or test and one patient is in one split only.
    columns: every other column of the manifest as (N,) str, blank where it was blank.
    spacing_mm: of the prepared scans, along each spatial axis; None where the format tells none, or scans differ.
    fingerprint: sha256 over the content of the files, the table and the preprocessing; `select` keeps it.
    store_dir: the folder that `open` takes, for a worker process to map the same pages; None after `select`.
    """

    images: np.ndarray
    labels: np.ndarray | None
    masks: np.ndarray | None
    patient_ids: np.ndarray
    split: np.ndarray
    columns: dict[str, np.ndarray]
    spacing_mm: tuple[float, ...] | None
    fingerprint: str
    store_dir: Path | None = None

    @classmethod
    def open(cls, store_dir: Path | str) -> Self:
        """Map a folder written by `prepare`: milliseconds, whatever its size; no pixel is read.

        Raises DataError if the folder is not a complete store (a complete one appears by rename, so it was altered
        since).
        """
        folder = Path(store_dir)
        try:
            facts = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            pixels = folder.parent / facts["pixels"]
            masks = np.load(pixels / "masks.npy", mmap_mode="c") if facts["masks"] else None
            images = np.load(pixels / "images.npy", mmap_mode="c")
            with np.load(folder / "table.npz", allow_pickle=False) as table:
                arrays = {name: table[name] for name in table.files}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder} is not a complete store ({error}); delete it, it will be made again.") from error
        spacing = facts["spacing_mm"]
        return cls(
            images=images,
            labels=arrays.get("labels"),
            masks=masks,
            patient_ids=arrays["patient_ids"],
            split=arrays["split"],
            columns={name: arrays[f"column:{name}"] for name in facts["columns"]},
            spacing_mm=tuple(spacing) if spacing else None,
            fingerprint=facts["fingerprint"],
            store_dir=folder,
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def n_patients(self) -> int:
        """How many different patients the scans are of."""
        return len(np.unique(self.patient_ids))

    def select(self, indices: np.ndarray | Sequence[int]) -> Self:
        """The scans at `indices` (integers, or a boolean per scan), in that order.

        A rising run without gaps stays memory-mapped; any other choice is copied into memory.
        """
        index = np.asarray(indices)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        rows: slice | np.ndarray = index
        if len(index) and index[0] >= 0 and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            rows = slice(int(index[0]), int(index[0]) + len(index))
        return replace(
            self,
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            masks=None if self.masks is None else self.masks[rows],
            patient_ids=self.patient_ids[rows],
            split=self.split[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            store_dir=None,
        )
