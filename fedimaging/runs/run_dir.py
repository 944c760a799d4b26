"""The run folder: what is in it, and how a killed run goes on from it.

    study.yaml           the resolved study           rounds.jsonl      one line a round
    federation.json/npz  who holds what               checkpoint.npz    state after the last whole round
    sites/NAME/          each hospital's ledger and audit log
    weights.safetensors  the final model              report.json, report.html, pictures/
    baselines/           the same for each baseline
"""

import contextlib
import fcntl
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from fedimaging.errors import RunError, StudyError
from fedimaging.federated.rounds import ServerState
from fedimaging.files import append_line, cut_short, disk_fault, remove_cut_short, write_text, write_whole
from fedimaging.results import RoundResult
from fedimaging.study.load import load
from fedimaging.study.schema import Study
from fedimaging.training.workbench import Workbench


class RunDir:
    """One run folder, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self, study: Study, *, resume: bool) -> Iterator[None]:
        """Take the folder for this study. Errors (RunError): it holds another study, or a finished or unfinished run
        without --resume, or another process works in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(disk_fault(self.path, error)) from error
        with lock:
            self._lock(lock)
            try:
                self._check_study(study, resume=resume)
                yield
            finally:
                self._leave_nothing_behind()

    def write_study(self, study: Study) -> None:
        """The resolved study, complete: `fedimaging simulate study.yaml` repeats the run."""
        text = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.path / "study.yaml", text)

    def save_state(self, state: ServerState) -> None:
        """Write the checkpoint by rename: a kill leaves the one before or this one, whole."""
        arrays = {f"moment.{name}": value for name, value in state.moments.items()}
        arrays |= {f"recent.{place:06d}": value for place, value in enumerate(state.recent)}
        arrays |= {f"factor.{site}": np.array(value) for site, value in state.factors.items()}

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, round=np.int64(state.round), weights=state.weights, **arrays)
                file.flush()
                os.fsync(file.fileno())

        write_whole(self.path / "checkpoint.npz", write)

    def load_state(self, start: ServerState, rounds: int) -> ServerState:
        """The last checkpoint of a run that began with `start`; `start` where no round was finished.

        Error: RunError where it cannot be read, or is no state of a run like this.
        """
        path = self.path / "checkpoint.npz"
        if not path.exists():
            return start
        state = self._read_state(path)
        like, weights = start.weights, state.weights
        same = weights.shape == like.shape and weights.dtype == like.dtype and state.moments.keys() == start.moments.keys()
        if not (same and np.isfinite(weights).all() and 0 <= state.round <= rounds):
            raise RunError(f"checkpoint {str(path)!r} is none of this study; start the run in a new folder.")
        return state

    def _read_state(self, path: Path) -> ServerState:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                moments = {n.removeprefix("moment."): kept[n] for n in kept.files if n.startswith("moment.")}
                recent = tuple(kept[n] for n in sorted(kept.files) if n.startswith("recent."))
                factors = {n.removeprefix("factor."): float(kept[n]) for n in kept.files if n.startswith("factor.")}
                return ServerState(int(kept["round"]), kept["weights"], moments, recent, factors)
        except (ValueError, KeyError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise RunError(f"checkpoint {str(path)!r} cannot be read ({error}); start the run in a new folder.") from None

    def save_weights(self, bench: Workbench, shared: np.ndarray) -> None:
        """The model, as named arrays, in weights.safetensors; `shared` is the vector that travels."""
        from safetensors.numpy import save_file

        full = bench.initial.copy()
        full[bench.shared] = shared
        arrays = bench.named_arrays(full)
        write_whole(self.path / "weights.safetensors", lambda path: save_file(arrays, path))

    def append_round(self, result: RoundResult) -> None:
        """One line of rounds.jsonl."""
        append_line(self.path / "rounds.jsonl", json.dumps(_no_nan(result.as_json())))

    def rounds(self, up_to: int | None = None) -> list[dict[str, Any]]:
        """The rounds written so far, each once: a round that was run again after a crash counts as its last line."""
        path = self.path / "rounds.jsonl"
        if not path.exists():
            return []
        whole: dict[int, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                row = json.loads(line)
                whole[int(row["round"])] = row
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a kill; that round was not checkpointed and was run again
        return [whole[number] for number in sorted(whole) if up_to is None or number <= up_to]

    def decided(self, data_fingerprint: str) -> dict[str, Any]:
        """What an interrupted run decided on this machine (run.json), empty for a new one; a resumed run keeps to it, so
        that its numbers are the same. Error: RunError where it cannot be read, or was decided on other data."""
        path = self.path / "run.json"
        if not path.exists():
            return {}
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            theirs = facts["data_fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{str(path)!r} cannot be read ({error!r}); start the run in a new folder.") from None
        if theirs != data_fingerprint:
            raise RunError(
                f"the data changed since the run in {str(self.path)!r} began; restore them, or start in a new folder."
            )
        return facts

    @property
    def finished(self) -> bool:
        """True once the report is written."""
        return (self.path / "report.json").exists()

    def _lock(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"run folder {str(self.path)!r} is in use by another process; choose another --out.") from None

    def _leave_nothing_behind(self) -> None:
        """A study that was refused before anything was written leaves no lock, and no folder that was empty before."""
        if not (self.path / "study.yaml").exists():
            with contextlib.suppress(OSError):  # the folder is not empty: it is somebody else's, and stays
                (self.path / ".lock").unlink()
                self.path.rmdir()

    def _check_study(self, study: Study, *, resume: bool) -> None:
        path = self.path / "study.yaml"
        if not path.exists():
            left = cut_short(self.path, path.name)  # killed while it wrote its first file: a new run, not somebody's folder
            others = [p.name for p in self.path.iterdir() if p.name != ".lock" and p not in left]
            if others:
                raise RunError(
                    f"folder {str(self.path)!r} is not empty and holds no run (it has {others[0]!r}); choose another --out."
                )
            remove_cut_short(self.path, path.name)
            return
        theirs = self._fingerprint_in(path)
        if theirs != study.fingerprint:
            raise RunError(
                f"run folder {str(self.path)!r} holds another study (fingerprint {theirs[:12]}, this one "
                f"{study.fingerprint[:12]}); choose another --out."
            )
        if not resume:
            state = "a finished run" if self.finished else "an unfinished run"
            raise RunError(f"run folder {str(self.path)!r} holds {state} of this study; add --resume, or choose another --out.")
        if not self.finished:  # in a finished run's folder, reports and audits are written without the lock
            remove_cut_short(self.path)

    @staticmethod
    def _fingerprint_in(path: Path) -> str:
        try:
            return load(path).fingerprint
        except StudyError as error:
            raise RunError(f"the run folder's own study cannot be read, choose another --out: {error}") from None


def _no_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
