"""The processes of a sweep on this machine: each has one thread and is used for many runs."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fedimaging.errors import RunError, StudyError, bad_value

WORKER = ("-m", "fedimaging.runs.sweep_worker")
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MEMORY_OF_ONE = 1.5e9  # bytes: torch and a small study; a large one wants --jobs given
_TRIES = 2


@dataclass(eq=False)
class _Worker:
    process: "subprocess.Popen[str]"
    task: dict[str, Any] | None = None
    cells: set[str] = field(default_factory=set)


@dataclass
class Pool:
    """`jobs` worker processes, started as they are needed. A context manager; on leaving, and when this process dies in
    whatever way, they die with what they were doing. `log`: where their stderr goes."""

    jobs: int
    log: Path
    _workers: list[_Worker] = field(default_factory=list)
    _events: "queue.Queue[tuple[_Worker, dict[str, Any] | None]]" = field(default_factory=queue.Queue)

    def __enter__(self) -> "Pool":
        for _ in range(self.jobs):
            self._workers.append(self._start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            self._end(worker)
        self._workers.clear()

    def work_off(self, tasks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Do the tasks, the first first, but for cells that a worker has begun.

        Yields what the workers tell: `started`, `round`, `warning`, and for each task one `done` or `failed`. A task whose
        process dies (out of memory, say) is tried once more. Error: RunError where a worker dies that had nothing to do.
        """
        waiting = deque(tasks)
        tries = dict.fromkeys((task["run"] for task in tasks), 0)
        left = len(waiting)
        while left:
            yield from self._hand_out(waiting, tries)
            worker, event = self._events.get()
            if event is None:
                event = self._replace(worker, waiting, tries)
            if event is None or event["kind"] == "ready":
                continue
            yield event
            if event["kind"] in ("done", "failed"):
                worker.task, left = None, left - 1

    def _hand_out(self, waiting: deque[dict[str, Any]], tries: dict[str, int]) -> Iterator[dict[str, Any]]:
        for worker in self._workers:
            if worker.task is None and waiting:
                worker.task = self._take(worker, waiting)
                tries[worker.task["run"]] += 1
                assert worker.process.stdin is not None
                with contextlib.suppress(OSError):  # a dead worker is noticed when its pipe is read
                    worker.process.stdin.write(json.dumps(worker.task) + "\n")
                    worker.process.stdin.flush()
                yield {"kind": "started", "run": worker.task["run"]}

    def _take(self, worker: _Worker, waiting: deque[dict[str, Any]]) -> dict[str, Any]:
        """The next task for a worker: one without a cell, of a cell it knows (the accounting of a budget takes seconds, and is
        remembered), of a cell that nobody knows, or another's."""
        known = {cell for other in self._workers for cell in other.cells}

        def rank(task: dict[str, Any]) -> int:
            cell = task["cell"]
            return 0 if not cell else 1 if cell in worker.cells else 2 if cell not in known else 3

        task = min(waiting, key=rank)
        waiting.remove(task)
        worker.cells |= {task["cell"]} - {""}
        return task

    def _replace(
        self, worker: _Worker, waiting: deque[dict[str, Any]], tries: dict[str, int]
    ) -> dict[str, Any] | None:
        """A worker died: another takes its place. Returns `failed` where its task had its tries. RunError where it died
        before it had one, as every other would."""
        code = worker.process.wait()
        self._close(worker)
        if worker not in self._workers:
            return None
        task = worker.task
        if task is None:
            raise RunError(f"a worker process of the sweep ended with code {code} before it worked; see {str(self.log)!r}.")
        self._workers[self._workers.index(worker)] = self._start()
        if tries[task["run"]] < _TRIES:
            waiting.appendleft(task)
            return None
        text = f"its process died {_TRIES} times, last with code {code} (out of memory?); see {str(self.log)!r}, or lower --jobs."
        return {"kind": "failed", "run": task["run"], "text": text, "fault": "RunError"}

    def _start(self) -> _Worker:
        command = [sys.executable, *WORKER]
        environment = os.environ | dict.fromkeys(_ONE_THREAD, "1")
        try:
            with self.log.open("a", encoding="utf-8") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
                )
        except OSError as error:
            raise RunError(f"cannot start a worker process: {error}; use fewer with --jobs.") from error
        worker = _Worker(process)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        with contextlib.suppress(ValueError, OSError), worker.process.stdout as lines:
            for line in lines:
                self._events.put((worker, json.loads(line)))
        self._events.put((worker, None))

    @staticmethod
    def _close(worker: _Worker) -> None:
        """It reads the end of its input, and stops."""
        assert worker.process.stdin is not None
        with contextlib.suppress(OSError):
            worker.process.stdin.close()

    @staticmethod
    def _end(worker: _Worker) -> None:
        Pool._close(worker)
        try:
            worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def jobs_of(text: str, runs: int) -> int:
    """`auto`: one a core, as far as the runs and the free memory go; else the number. Error: StudyError."""
    if text == "auto":
        by_memory = int(_free_memory() / _MEMORY_OF_ONE)
        return max(1, min(len(os.sched_getaffinity(0)), runs, by_memory))
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise StudyError(bad_value("--jobs", text, "is neither auto nor a whole number of at least 1"))
    return min(int(text), max(1, runs))


def _free_memory() -> float:
    """Bytes that could be used without swapping."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            facts = dict(line.split(":", 1) for line in file)
        return float(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
