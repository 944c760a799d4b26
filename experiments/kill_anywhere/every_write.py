"""Can a run be resumed, and with the same bits, if it dies before any one of its file operations?

    python experiments/kill_anywhere/every_write.py --jobs 2

Random moments seldom meet the microseconds between two files. Here a tiny private federation runs once in peace, and its
operations on files are counted: every file opened for writing, renamed or removed, every folder made, as far as Python tells of
them (not what SQLite does inside, nor what native code writes). Then, for each number N, it is started anew, killed (SIGKILL)
just before its N-th operation, and resumed to its end. Every ledger must be in order and hold every step that was run, the
resumed run must end with exit code 0 and the same weights bit for bit, and no file may be missing or left half written, but for
what `_files` names. Exit code 1 where anything does not hold.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from run import HERE, PATIENCE_SECONDS, STUDY, Broken, Federation

from fedimaging.errors import FedimagingError

ROUNDS = 2


class EveryWrite:
    """The peaceful run, and what became of each killed one."""

    def __init__(self, study: Path, folder: Path, more: list[str]) -> None:
        self._study, self._folder, self._more = study, folder, more
        calm = Federation(folder / "calm", study, 1, *more)
        calm.must_end_well(calm.start(**self._dying(calm, 0)))
        self.operations = calm.trace.with_name(calm.trace.name + ".operations").read_text().splitlines()
        self._weights, self._files = calm.weights(), _files(calm.folder)

    @staticmethod
    def _dying(federation: Federation, number: int) -> dict[str, str]:
        return {"KILL_ANYWHERE_AT": str(number), "KILL_ANYWHERE_FOLDER": str(federation.folder)}

    def fault_of(self, number: int) -> str:
        """Die before that operation and resume; what did not hold, or nothing."""
        federation = Federation(self._folder / f"killed_{number}", self._study, 1, *self._more)
        process = federation.start(**self._dying(federation, number))
        try:
            process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # not by the signal that it was to die of
        if process.wait() != -signal.SIGKILL:
            said = federation.errors.read_text()[-500:]
            return f"ended with exit code {process.returncode} where it was to be killed: {said}"
        try:
            federation.books()
            federation.must_end_well(federation.start())
            federation.books()
        except (Broken, FedimagingError) as fault:
            return str(fault)
        files = _files(federation.folder)
        if files != self._files:
            return f"missing or left behind: {', '.join(sorted(files ^ self._files))}"
        found = federation.weights()
        same = found.keys() == self._weights.keys() and all(np.array_equal(self._weights[name], found[name]) for name in found)
        shutil.rmtree(federation.folder)
        return "" if same else "the final weights differ from those of the undisturbed run"


def main() -> int:
    """Run the experiment and write results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--every", type=int, default=1, help="only every so many operations")
    parser.add_argument("--full", action="store_true", help="with baselines, the page and its pictures")
    asked = parser.parse_args()
    more = ["--baselines", "--report"] if asked.full else ["--no-report"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ |= {"FEDIMAGING_CACHE": str(folder / "store"), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        study = folder / "study.yaml"
        study.write_text(yaml.safe_dump(_study()), encoding="utf-8")
        kills = EveryWrite(study, folder, more)
        numbers = range(1, len(kills.operations) + 1, asked.every)
        faults: dict[int, str] = {}
        with ThreadPoolExecutor(asked.jobs) as pool:
            for number, fault in zip(numbers, pool.map(kills.fault_of, numbers), strict=True):
                print(f"{number:4d} {kills.operations[number - 1]:60s} {fault or 'resumed, same bits'}", flush=True)
                faults |= {number: fault} if fault else {}
    result = {
        "date": datetime.date.today().isoformat(), "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "options": more, "kills": len(numbers), "operations": kills.operations,
        "faults": faults, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    path = HERE / "results" / f"every_write{'_full' if asked.full else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"killed before {len(numbers)} of {len(kills.operations)} operations on files; {len(faults)} did not go on as they "
          f"should; {path}")  # fmt: skip
    return 1 if faults else 0


def _files(folder: Path) -> set[str]:
    """All files, but for two: the count of steps, which a hospital keeps only where a round takes long, and a half-written head
    of a ledger, which that ledger's next entry writes over, if there is one."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(("steps.count", "ledger.sqlite.head.part"))}


def _study() -> dict[str, Any]:
    study = json.loads(json.dumps(STUDY))
    study["federation"] |= {"rounds": ROUNDS}
    study["training"] |= {"local_epochs": 1}
    study["evaluation"] |= {"every": 1}
    return dict(study)


if __name__ == "__main__":
    sys.exit(main())
