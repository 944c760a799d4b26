"""The live table of a sweep: one row a cell with what is done, the metric so far and the time left; plain lines elsewhere
than in a terminal."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedimaging.runs.report_text import duration_text, metric_words
from fedimaging.runs.sweep_grid import PlannedRun, epsilon_word


@dataclass
class _State:
    """Of one run: `waiting`, `running`, `done` or `failed`."""

    run: PlannedRun
    state: str = "waiting"
    words: str = ""
    value: float | None = None
    began: float = 0.0
    seconds: float | None = None
    part: float = 0.0  # of the rounds

    @property
    def kind(self) -> tuple[bool, bool, bool, tuple[tuple[str, str], ...]]:
        """Runs of one kind take about the same time."""
        return self.run.baselines, self.run.audit, self.run.unit == "", self.run.keys


@dataclass
class SweepView:
    """Shows how a sweep goes on. A context manager. `clock`: seconds, for tests."""

    out: TextIO | None = None
    quiet: bool = False
    clock: Any = time.monotonic
    _states: dict[str, _State] = field(default_factory=dict)
    _metric: str = ""
    _jobs: int = 1
    _live: Live | None = None
    _warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._console = Console(file=self.out or sys.stderr, quiet=self.quiet, highlight=False)
        self._warnings = Console(file=self.out or sys.stderr, highlight=False) if self.quiet else self._console

    def __enter__(self) -> "SweepView":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def plan(self, runs: Sequence[PlannedRun], done: Mapping[str, float | None], metric: str, jobs: int) -> None:
        """The sweep begins. `done`: the runs that are finished already, with their metric."""
        self._states = {run.name: _State(run) for run in runs}
        for name, value in done.items():
            self._states[name].state, self._states[name].value = "done", value
        self._metric, self._jobs = metric, jobs
        if self._console.is_terminal and not self.quiet:
            self._live = Live(console=self._console, transient=True, refresh_per_second=2, get_renderable=self.table)
            self._live.start()

    def say(self, text: str) -> None:
        """One plain line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def event(self, event: Mapping[str, Any], value: float | None = None) -> None:
        """What a worker told; `value` is the metric of a run that is done."""
        if event["kind"] == "warning":
            if event["text"] not in self._warned:  # said once, not by every run
                self._warned.add(event["text"])
                self._warnings.print(f"warning: {event['text']}", markup=False, soft_wrap=True)
            return
        state = self._states[event["run"]]
        if event["kind"] == "started":
            state.state, state.began = "running", self.clock()
        elif event["kind"] == "round":
            done = f" {event['round']}/{event['of']}" if event["of"] else ""
            state.words = f"{event['arm']}{done}"
            state.part = event["round"] / event["of"] if event["arm"] == "federated" else 1.0
        elif event["kind"] in ("done", "failed"):
            state.state, state.value = event["kind"], value
            if state.began:
                state.seconds = self.clock() - state.began
            self._tell_end(state, event)

    def left_seconds(self) -> float | None:
        """Until all is done: medians of the finished runs of the same kind, else of all; None before the first is done. A run
        that takes longer than these is told by its rounds."""
        known = [state for state in self._states.values() if state.seconds is not None]
        if not known:
            return None
        left = 0.0
        for state in self._states.values():
            if state.state in ("waiting", "running"):
                alike = [other.seconds for other in known if other.kind == state.kind] or [other.seconds for other in known]
                spent = self.clock() - state.began if state.state == "running" else 0.0
                by_rounds = spent * (1 - state.part) / state.part if state.part else 0.0
                left += max(by_rounds, median(seconds for seconds in alike if seconds is not None) - spent)
        return left / self._jobs

    def table(self) -> Table:
        """The table as it stands now."""
        left = self.left_seconds()
        done = sum(state.state in ("done", "failed") for state in self._states.values())
        title = f"{done} of {len(self._states)} runs" + (f", about {duration_text(left)} left" if left else "")
        table = Table(title=title, title_justify="left", title_style="bold")
        for heading in ("ε", "unit", "keys", "done", metric_words(self._metric).label, "now"):
            table.add_column(heading)
        cells: dict[Any, list[_State]] = {}
        for state in self._states.values():
            cells.setdefault(state.run.cell, []).append(state)
        for (epsilon, unit, keys), states in cells.items():
            values = [state.value for state in states if state.value is not None]
            table.add_row(
                epsilon_word(epsilon), unit or "–", ", ".join(f"{key}={value}" for key, value in keys),
                f"{sum(s.state == 'done' for s in states)}/{len(states)}"
                + ("" if all(s.state != "failed" for s in states) else " failed"),
                f"{mean(values):.3f}" if values else "",
                ", ".join(f"seed {s.run.seed}: {s.words or 'starts'}" for s in states if s.state == "running"),
            )
        return table

    def _tell_end(self, state: _State, event: Mapping[str, Any]) -> None:
        if event["kind"] == "failed":
            self._warnings.print(f"failed: {state.run.name}: {event['text']}", markup=False, soft_wrap=True)
        elif self._live is None:
            left = self.left_seconds()
            done = sum(s.state in ("done", "failed") for s in self._states.values())
            found = f" {self._metric} {state.value:.3f}" if state.value is not None else ""
            rest = f", about {duration_text(left)} left" if left and done < len(self._states) else ""
            took = f" in {duration_text(state.seconds)}" if state.seconds is not None else ""
            self.say(f"{done}/{len(self._states)} {state.run.name}:{found}{took}{rest}")
