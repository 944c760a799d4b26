"""A hospital's own model (`personalisation` of a study), on its disk by round. No message asks for it and none carries it.

It is fitted to training patients WITHOUT noise, so nothing about it may be told as private. Against the outside it costs
nothing, because it never leaves. Figures about it do leave where the policy releases evaluations without noise; they carry no
epsilon, neither for those tested nor for those it was fitted to. Noised counts would protect those tested alone, while one
training patient may change every score behind them: no ledger can charge that, so a hospital that releases noised counts
lets no figure of its own model leave.

The hospital may load, copy and use `personal.safetensors` inside its walls. It is no part of a release: whoever takes it
outside takes out what a model without privacy knows of its training patients.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedimaging.files import write_whole
from fedimaging.study.schema import Study
from fedimaging.training.personal import personal_steps
from fedimaging.training.workbench import SiteRecords, Workbench

RELEASES = ("coarsened", "metrics", "scores")
"""Modes of `release_evaluation` under which figures of a hospital's own model may leave."""


class PersonalModel:
    """Kept in `folder` by round, the two newest, so that a round which a crash interrupted starts again from the same model.

    key: decides order and augmentation, with the round. after_step: called after every step; an error ends the work.
    """

    def __init__(
        self, folder: Path, study: Study, bench: Workbench, records: SiteRecords, key: str, after_step: Callable[[], None]
    ) -> None:
        self._folder, self._spec, self._rounds = folder, study.personalisation, study.federation.rounds
        self._bench, self._records, self._key, self._after_step = bench, records, key, after_step

    def beside(self, round: int, shared: np.ndarray) -> None:
        """Ditto's steps beside a round that began with the full vector `shared` (V,); nothing for other kinds. A round that is
        asked for again finds its model made."""
        if self._spec.kind != "ditto" or self._path(round).exists():
            return
        end = self._steps(self._newest(round, shared), shared, f"{round}")
        _save(self._path(round), lambda file: np.save(file, end, allow_pickle=False))
        for old in self._kept():
            if not round - 2 < old <= round:
                self._path(old).unlink(missing_ok=True)

    def final(self, shared: np.ndarray) -> np.ndarray:
        """The own model (V,) after the federation ended with the full vector `shared` (V,); made once for it.

        Also written as named arrays to `personal.safetensors`, for the hospital's own use.
        """
        digest, path = hashlib.sha256(shared.tobytes()).hexdigest(), self._folder / "personal.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                if str(kept["shared"]) == digest:
                    return np.asarray(kept["vector"])
        start = self._newest(self._rounds + 1, shared) if self._spec.kind == "ditto" else shared
        end = self._steps(start, shared, "final")
        _save(path, lambda file: np.savez(file, allow_pickle=False, shared=digest, vector=end))
        self._write_named(end)
        return end

    def _steps(self, start: np.ndarray, shared: np.ndarray, when: str) -> np.ndarray:
        return personal_steps(
            self._bench, start, shared, self._records, self._spec, key=f"{self._key}/personal/{when}", after_step=self._after_step
        )

    def _newest(self, before: int, shared: np.ndarray) -> np.ndarray:
        rounds = [number for number in self._kept() if number < before]
        return np.asarray(np.load(self._path(max(rounds)), allow_pickle=False)) if rounds else shared

    def _write_named(self, vector: np.ndarray) -> None:
        from safetensors.numpy import save_file

        arrays = self._bench.named_arrays(vector)
        write_whole(self._folder / "personal.safetensors", lambda path: save_file(arrays, path))

    def _path(self, round: int) -> Path:
        return self._folder / f"personal_{round:06d}.npy"

    def _kept(self) -> list[int]:
        return [int(path.stem.removeprefix("personal_")) for path in self._folder.glob("personal_*.npy")]


def _save(path: Path, save: Callable[..., object]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            save(file)

    write_whole(path, write)
