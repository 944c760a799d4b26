"""The sweep folder: what is in it, and how an interrupted sweep goes on from it.

    sweep.json     what was asked: every run by name with its study's fingerprint
    runs/NAME/     one run folder each, as `fedimaging simulate` makes it
    workers.log    what the worker processes had to say beside their results
    results.csv, runs.csv, summary.json, table.md, table.tex, sweep.html
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedimaging.errors import RunError
from fedimaging.files import cut_short, disk_fault, held, remove_cut_short, write_json
from fedimaging.runs.report import read_report
from fedimaging.runs.sweep_grid import PlannedRun
from fedimaging.runs.sweep_worker import AUDIT_FILE

SCHEMA = "fedimaging-sweep/1"


class SweepDir:
    """One sweep folder, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def log(self) -> Path:
        """What worker processes print."""
        return self.path / "workers.log"

    def run(self, run: PlannedRun) -> Path:
        """The folder of a run."""
        return self.path / "runs" / run.name

    def report(self, run: PlannedRun) -> dict[str, Any] | None:
        """A finished run's report; None where the run is not finished. Error: RunError for one that cannot be read."""
        folder = self.run(run)
        return read_report(folder) if (folder / "report.json").exists() else None

    def audit(self, run: PlannedRun) -> dict[str, Any] | None:
        """What the attacks found in a run that was audited. Error: RunError for a file that cannot be read."""
        path = self.run(run) / AUDIT_FILE
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}); delete it, and the sweep audits the run again.") from error
        return found

    def is_done(self, run: PlannedRun) -> bool:
        """Finished, and audited where that is asked for."""
        folder = self.run(run)
        return (folder / "report.json").exists() and (not run.audit or (folder / AUDIT_FILE).exists())

    @contextmanager
    def held(self, runs: Sequence[PlannedRun], *, baselines: bool) -> Iterator[None]:
        """Take the folder for these runs. Errors (RunError): it holds something else, another sweep, or another process
        works in it. A sweep that grew (more budgets, seeds, units or values) goes on in its folder."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(disk_fault(self.path, error)) from error
        try:
            in_use = f"sweep folder {str(self.path)!r} is in use by another process; choose another --out."
            with held(self.path / ".lock", in_use):
                self._check(runs, baselines)
                yield
        finally:
            self._leave_nothing_behind()

    def write_plan(self, runs: Sequence[PlannedRun], facts: Mapping[str, Any]) -> None:
        """Write sweep.json: from here on the folder is this sweep's."""
        plan = {run.name: run.study.fingerprint for run in runs}
        write_json(self.path / "sweep.json", {"schema": SCHEMA, **facts, "runs": plan})

    def _check(self, runs: Sequence[PlannedRun], baselines: bool) -> None:
        path = self.path / "sweep.json"
        if not path.exists():
            ours = {".lock", "workers.log", *(left.name for left in cut_short(self.path, path.name))}
            others = sorted(p.name for p in self.path.iterdir() if p.name not in ours)
            if others:
                raise RunError(
                    f"folder {str(self.path)!r} is not empty and holds no sweep (it has {others[0]!r}); choose another --out."
                )
        remove_cut_short(self.path, "*")
        if not path.exists():
            return
        theirs = self._read_plan(path)
        mine = {run.name: run.study.fingerprint for run in runs}
        missing = [name for name in theirs["runs"] if name not in mine]
        changed = [name for name, fingerprint in theirs["runs"].items() if mine.get(name, fingerprint) != fingerprint]
        what = ""
        if missing:
            what = f"has the run {missing[0]!r}, which is not asked for now; ask for all that it has (more may be added)"
        elif changed:
            what = f"was made from another study (its run {changed[0]!r} differs in more than budget, unit, seed and keys)"
        elif theirs.get("baselines") != baselines:
            what = f"was begun {'with' if theirs.get('baselines') else 'without'} baselines"
        if what:
            raise RunError(f"the sweep in {str(self.path)!r} {what}; or choose another --out.")

    @staticmethod
    def _read_plan(path: Path) -> dict[str, Any]:
        try:
            tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if tree["schema"] != SCHEMA or not isinstance(tree["runs"], dict):
                raise ValueError(f"schema {tree['schema']!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{str(path)!r} cannot be read ({error!r}); choose another --out.") from None
        return tree

    def _leave_nothing_behind(self) -> None:
        """A sweep that was refused before anything trained leaves nothing, and no folder that was empty before."""
        if not (self.path / "sweep.json").exists():
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()
                self.log.unlink(missing_ok=True)
                self.path.rmdir()
