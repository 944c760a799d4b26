"""The live view of a run: one line that moves in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn


class LiveView:
    """Shows round, hospitals done, loss, test metric, epsilon spent and time left. A context manager.

    `without_epsilon`: what stands in place of the epsilon of a round that has none.
    """

    def __init__(self, rounds: int, *, out: TextIO | None = None, quiet: bool = False, without_epsilon: str = "no DP") -> None:
        self._console = Console(file=out or sys.stderr, quiet=quiet, highlight=False)
        self._warnings = Console(file=out or sys.stderr, highlight=False) if quiet else self._console
        self._rounds, self._without_epsilon = rounds, without_epsilon
        self._label = ""
        self._began = time.monotonic()
        self._first_round = 0
        self._progress: Progress | None = None
        self._task: Any = None
        self._last = ""

    def __enter__(self) -> "LiveView":
        if self._console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[facts]}"),
                console=self._console, transient=True, refresh_per_second=4,
            )
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        """One plain line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning on stderr: work goes on, and --quiet does not hide it."""
        self._warnings.print(f"warning: {text}", markup=False, soft_wrap=True)

    def arm(self, label: str, first_round: int) -> None:
        """A federation (or a baseline) begins after `first_round` rounds."""
        self._label, self._first_round, self._began, self._last = label, first_round, time.monotonic(), ""
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(label, total=self._rounds, completed=first_round, facts="")

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """A hospital finished its part of a round, or refused."""
        if kind == "refused":
            self.say(f"{self._label}: round {facts['round']}: {facts['site']} refused ({facts['code']})")
        elif self._progress is not None:
            part = facts["done"] / facts["of"]
            text = f"round {facts['round']}/{self._rounds} · hospital {facts['done']}/{facts['of']} {self._last}"
            self._progress.update(self._task, completed=facts["round"] - 1 + part, facts=text)

    def round(self, row: Mapping[str, Any]) -> None:
        """A round is done. In a terminal the line moves on; elsewhere one line is printed."""
        number = row["round"]
        metrics = " ".join(f"{name} {value:.3f}" for name, value in row["metrics"].items() if value == value)
        spent = [value for value in row["epsilon"].values() if value == value]
        epsilon = f"ε ≤ {max(spent):.2f}" if spent else self._without_epsilon
        self._last = " · ".join(part for part in (metrics, epsilon, f"{self._left(number)} left") if part)
        if self._progress is None:
            self.say(f"{self._label}: round {number}/{self._rounds}: {len(row['sites'])} hospitals · {self._last}")
        else:
            self._progress.update(self._task, completed=number, facts=f"round {number}/{self._rounds} · {self._last}")

    def _left(self, number: int) -> str:
        done = max(1, number - self._first_round)
        seconds = (time.monotonic() - self._began) / done * (self._rounds - number)
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
