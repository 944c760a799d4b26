"""One worker of a sweep: a process that runs many studies one after another, so that torch is loaded once.

It reads tasks as lines of JSON from its standard input and tells what happens as lines of JSON on its standard output. It
dies with its parent: at the end of its input it stops wherever it is, and whoever goes on finds the run as a kill leaves it.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from fedimaging.errors import FedimagingError
from fedimaging.runs.live import LiveView

Tell = Callable[[dict[str, Any]], None]
AUDIT_FILE = "audit.json"


class _Teller(LiveView):
    """In place of a live view: says on a pipe what happens."""

    def __init__(self, rounds: int, tell: Tell) -> None:
        super().__init__(rounds, quiet=True)
        self._tell, self._arm = tell, ""

    def say(self, text: str) -> None:
        """Nothing: a sweep shows one table."""

    def warn(self, text: str) -> None:
        """A warning of the study, once a run."""
        self._tell({"kind": "warning", "text": text})

    def arm(self, label: str, first_round: int) -> None:
        """A federation or a baseline begins."""
        self._arm = label

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Too small to tell."""

    def round(self, row: Mapping[str, Any]) -> None:
        """A round is done."""
        metrics = {name: value for name, value in row["metrics"].items() if value == value}
        self._tell({"kind": "round", "arm": self._arm, "round": row["round"], "of": self._rounds, "metrics": metrics})


def task_of(kind: str, run: Any, folder: Path, *, reports: bool = False) -> dict[str, Any]:
    """The task of a `PlannedRun` as JSON: `check` that its study can work, or `run` it in `folder`. Tasks of one private
    `cell` share what their process remembers of the accounting."""
    return {
        "kind": kind, "run": run.name, "study": run.study.model_dump(mode="json"), "folder": str(folder.resolve()),
        "cell": repr(run.cell) if run.unit else "", "baselines": run.baselines, "audit": run.audit, "reports": reports,
        "cwd": os.getcwd(),
        "cache": os.environ.get("FEDIMAGING_CACHE"),
    }


def do(task: Mapping[str, Any], tell: Tell = lambda event: None) -> dict[str, Any]:
    """Do one task with one thread; the event that says how it ended: `done`, or `failed` with the error in words.

    A run that was begun goes on; a finished one is only audited, where that is asked for and not done.
    """
    import torch

    torch.set_num_threads(1)
    try:
        _check(task) if task["kind"] == "check" else _run(task, tell)
    except FedimagingError as error:
        return {"kind": "failed", "run": task["run"], "text": str(error), "fault": type(error).__name__}
    return {"kind": "done", "run": task["run"]}


def do_elsewhere(task: dict[str, Any]) -> dict[str, Any]:
    """`do` on a machine of a cluster, which shares this one's folders but not its working folder and environment."""
    os.chdir(task["cwd"])
    if task["cache"]:
        os.environ["FEDIMAGING_CACHE"] = task["cache"]
    return do(task)


def _check(task: Mapping[str, Any]) -> None:
    """Decode the data, deal them out, calibrate the noise, build the network: what `simulate` would refuse is refused here.
    Nothing trains."""
    from fedimaging.runs import assemble, groups, hospitals
    from fedimaging.site.simulated import shared_workbench
    from fedimaging.study.schema import Study
    from fedimaging.training.workbench import resolve_device

    study = Study.model_validate(task["study"])
    assemble.check_metric(study)
    dataset = hospitals.load_data(study)
    groups.check_groups(study, dataset)
    device = str(resolve_device(study.runtime.device))
    hospitals.make_federation(study, dataset, Path(task["folder"]), device)
    shared_workbench(study, device)


def _run(task: Mapping[str, Any], tell: Tell) -> None:
    from fedimaging.runs.options import Options
    from fedimaging.runs.simulate import simulate
    from fedimaging.study.schema import Study

    study, folder = Study.model_validate(task["study"]), Path(task["folder"])

    def told(event: dict[str, Any]) -> None:
        tell({"run": task["run"], **event})

    options = Options(resume=True, baselines=task["baselines"], workers=1, report=task["reports"])
    simulate(study, folder, options, _Teller(study.federation.rounds, told))
    if task["audit"] and not (folder / AUDIT_FILE).exists():
        _audit(folder, told)


def _audit(folder: Path, told: Tell) -> None:
    from fedimaging.runs.audit import audit
    from fedimaging.runs.audit_options import AuditOptions

    told({"kind": "round", "arm": "audit", "round": 0, "of": 0, "metrics": {}})
    audit(folder, AuditOptions(), lambda text: None)


def main() -> None:
    """Work until the parent closes the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between our lines
    tasks: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_receive, args=(sys.stdin, tasks), daemon=True).start()
    import fedimaging.runs.simulate  # noqa: F401 - loaded while the first task is still on its way

    def tell(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    tell({"kind": "ready"})
    while True:
        tell(do(tasks.get(), tell))


def _receive(pipe: TextIO, tasks: "queue.Queue[dict[str, Any]]") -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in pipe:
            tasks.put(json.loads(line))
    os._exit(0)  # at once, in the middle of whatever runs: the parent is gone


if __name__ == "__main__":
    main()
