"""The last update that a hospital made with privacy, on its disk: asked for again, the same leaves at no cost."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedimaging.errors import SiteRefusal
from fedimaging.files import write_whole


@dataclass(frozen=True)
class MadeUpdate:
    """An update, float32 (P,), and the epsilon of all charges with it; None without privacy."""

    delta: np.ndarray
    epsilon: float | None


class KeptUpdate:
    """One file in the hospital's state. `durable`: on the disk (fsync) before `keep` returns."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._path, self._durable = folder / "release.npz", durable

    def find(self, round: int, digest: str) -> MadeUpdate | None:
        """The update made for this round and the weights with this digest. Error: SiteRefusal("replayed_round") where an update
        of this round or a later one was made from other weights."""
        if not self._path.exists():
            return None
        with np.load(self._path, allow_pickle=False) as kept:
            if int(kept["round"]) == round and str(kept["digest"]) == digest:
                return MadeUpdate(np.asarray(kept["delta"]), float(kept["epsilon"]))
            if int(kept["round"]) >= round:
                raise SiteRefusal("replayed_round")
        return None

    def keep(self, round: int, digest: str, update: MadeUpdate) -> None:
        """Keep it in place of the one before, by rename."""
        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, round=round, digest=digest, delta=update.delta, epsilon=np.float64(update.epsilon))
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())

        write_whole(self._path, write)
