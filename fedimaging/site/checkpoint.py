"""A round that a crash interrupts goes on from its last checkpoint, under the charge that was reserved for it.

Why this is safe. The noise of the steps already taken is in the kept weights: going on from them is post-processing.
The steps that came after the checkpoint are taken anew with fresh secure noise; nothing of them was kept or has left the
hospital, and they are charged again all the same, so that every step that ever ran on patients is charged. Exactly one
update of a round leaves under its reservation: once the ledger has settled it, no checkpoint of it is gone on with.

`progress.npz` holds the checkpoint, `steps.count` (16 bytes, overwritten in place after each step) how far the round had
come; a round that ends before its first checkpoint costs nothing here.
"""

import hashlib
import os
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedimaging.errors import SiteRefusal
from fedimaging.files import write_whole
from fedimaging.training.local import AfterStep, Progress

_LEAST_SECONDS = 1.0  # between checkpoints, and before the first
_SIMULATED = 15  # so many times as long in a simulation, where no patient is charged for what is lost
_SHARE = 0.05  # of the time goes into checkpoints, at most
_COUNT = struct.Struct("<qq")
_OPTIMIZER = "optimizer/"


@dataclass(frozen=True)
class Kept:
    """An interrupted round. `entry`: its reservation in the ledger, None without privacy. `begun`: the most steps that can
    have begun before it was interrupted; None where nobody knows."""

    entry: int | None
    progress: Progress
    begun: int | None


class Checkpoint:
    """The checkpoint of one study at one hospital: at most one round is under way."""

    def __init__(self, folder: Path, *, simulated: bool = False) -> None:
        self._file, self._count = folder / "progress.npz", folder / "steps.count"
        self._least = _LEAST_SECONDS * (_SIMULATED if simulated else 1)

    def find(self, round: int, weights: np.ndarray) -> Kept | None:
        """What is kept of this round from these weights; None where nothing is, or it cannot be read."""
        if not self._file.exists():
            return None
        try:
            with self._file.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                if int(kept["round"]) != round or str(kept["weights"]) != _digest(weights):
                    return None
                arrays = {n.removeprefix(_OPTIMIZER): kept[n] for n in kept.files if n.startswith(_OPTIMIZER)}
                progress = Progress(int(kept["steps"]), kept["vector"], arrays)
                number = int(kept["entry"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # a power cut: the round starts anew
            return None
        return Kept(number if number >= 0 else None, progress, self._begun(number))

    def watch(
        self, round: int, weights: np.ndarray, entry: int | None, stop: Callable[[], bool], resumed: Kept | None
    ) -> AfterStep:
        """For `train_locally`: keep the progress now and then, and when `stop` says so.

        Raises SiteRefusal("stopping") from the training then; the round goes on when it is asked for again.
        """
        number = -1 if entry is None else entry
        if resumed is not None:
            self._write_count(number, resumed.progress.steps)
        due, kept = time.monotonic() + self._least, resumed is not None

        def after_step(steps: int, progress: Callable[[], Progress]) -> None:
            nonlocal due, kept
            stopping = stop()
            if stopping or time.monotonic() >= due:
                began = time.monotonic()
                self._keep(round, weights, number, progress())
                due, kept = time.monotonic() + max(self._least, (time.monotonic() - began) / _SHARE), True
            if kept:
                self._write_count(number, steps)
            if stopping:
                raise SiteRefusal("stopping", f"asked to stop in round {round} after {steps} steps, which are kept.")

        return after_step

    def drop(self) -> None:
        """The round is over: forget it."""
        self._file.unlink(missing_ok=True)

    def _keep(self, round: int, weights: np.ndarray, entry: int, progress: Progress) -> None:
        arrays = {_OPTIMIZER + name: array for name, array in progress.optimizer.items()}

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(
                    file, allow_pickle=False, round=round, weights=_digest(weights), entry=entry, steps=progress.steps,
                    vector=progress.vector, **arrays,
                )

        write_whole(self._file, write)

    def _begun(self, entry: int) -> int | None:
        try:
            counted, steps = _COUNT.unpack(self._count.read_bytes())
        except (OSError, struct.error):
            return None
        return steps + 1 if counted == entry else None  # one more may have been under way

    def _write_count(self, entry: int, steps: int) -> None:
        file = os.open(self._count, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, _COUNT.pack(entry, steps), 0)
        finally:
            os.close(file)


def _digest(weights: np.ndarray) -> str:
    return hashlib.sha256(weights.tobytes()).hexdigest()
