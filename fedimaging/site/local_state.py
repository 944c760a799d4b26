"""Parameters that stay at the hospital (FedBN-style normalisation layers, or a head): kept on its disk by round.

Source of the idea: Li et al. 2021, FedBN. They are trained with the same privacy as the shared ones, because they
shape what the shared ones become.
"""

from pathlib import Path

import numpy as np

from fedimaging.files import write_whole
from fedimaging.training.workbench import Workbench


class LocalState:
    """Joins the server's vector with the hospital's own parameters, and splits them again after training.

    The two newest rounds are kept, so that a round which a crash interrupted starts again from the same state.
    """

    def __init__(self, folder: Path, bench: Workbench) -> None:
        self._folder = folder
        self._bench = bench

    def join(self, shared: np.ndarray, *, before_round: int) -> np.ndarray:
        """The full vector: the server's where shared, this hospital's newest from before that round elsewhere."""
        if self._bench.all_shared:
            return shared
        full = self._bench.initial.copy()
        rounds = [number for number in self._rounds() if number < before_round]
        if rounds:
            full[~self._bench.shared] = np.load(self._path(max(rounds)), allow_pickle=False)
        full[self._bench.shared] = shared
        return full

    def split(self, full: np.ndarray, round: int) -> np.ndarray:
        """The shared part of the trained vector; the local part is kept on disk under this round."""
        if self._bench.all_shared:
            return full

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, full[~self._bench.shared], allow_pickle=False)

        write_whole(self._path(round), write)
        for old in sorted(self._rounds())[:-2]:
            self._path(old).unlink(missing_ok=True)
        return full[self._bench.shared]

    def _path(self, round: int) -> Path:
        return self._folder / f"local_{round:06d}.npy"

    def _rounds(self) -> list[int]:
        return [int(path.stem.removeprefix("local_")) for path in self._folder.glob("local_*.npy")]
