"""What a sweep shows while it runs."""

import io
import math

from rich.console import Console

from fedimaging.runs.sweep_live import SweepView
from tests.runs.made_up_sweep import planned


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _view(**options: object) -> tuple[SweepView, io.StringIO, _Clock]:
    out, clock = io.StringIO(), _Clock()
    view = SweepView(out=out, clock=clock, **options)  # type: ignore[arg-type]
    view.plan(planned((1.0, math.inf), 2), {"epsilon_inf-seed_0": 0.9}, "auroc", 2)
    return view, out, clock


def _finish(view: SweepView, clock: _Clock, name: str, seconds: float) -> None:
    view.event({"kind": "started", "run": name})
    clock.now += seconds
    view.event({"kind": "done", "run": name}, 0.8)


def test_time_left_is_the_median_of_runs_of_the_same_kind_over_the_workers() -> None:
    view, _, clock = _view()
    assert view.left_seconds() is None
    _finish(view, clock, "epsilon_1-patient-seed_0", 60)
    assert view.left_seconds() == (60 + 60) / 2  # of the other kind nothing is known but this
    view.event({"kind": "started", "run": "epsilon_1-patient-seed_1"})
    clock.now += 20
    assert view.left_seconds() == (40 + 60) / 2
    clock.now += 60  # longer than the other took, and a quarter of its rounds is done
    view.event({"kind": "round", "run": "epsilon_1-patient-seed_1", "arm": "federated", "round": 5, "of": 20, "metrics": {}})
    assert view.left_seconds() == (240 + 60) / 2


def test_elsewhere_than_in_a_terminal_a_line_a_run() -> None:
    view, out, clock = _view()
    _finish(view, clock, "epsilon_1-patient-seed_0", 60)
    assert out.getvalue() == "2/4 epsilon_1-patient-seed_0: auroc 0.800 in 1 min 00 s, about 1 min 00 s left\n"


def test_quiet_says_nothing_but_what_went_wrong_and_a_warning_once() -> None:
    view, out, clock = _view(quiet=True)
    _finish(view, clock, "epsilon_1-patient-seed_0", 60)
    for _ in range(2):
        view.event({"kind": "warning", "run": "epsilon_1-patient-seed_1", "text": "one class only"})
    view.event({"kind": "failed", "run": "epsilon_1-patient-seed_1", "text": "no space"})
    assert out.getvalue() == "warning: one class only\nfailed: epsilon_1-patient-seed_1: no space\n"


def test_the_table_has_a_row_a_cell() -> None:
    view, _, clock = _view()
    _finish(view, clock, "epsilon_1-patient-seed_0", 60)
    view.event({"kind": "started", "run": "epsilon_1-patient-seed_1"})
    view.event({"kind": "round", "run": "epsilon_1-patient-seed_1", "arm": "federated", "round": 3, "of": 20, "metrics": {}})
    out = io.StringIO()
    Console(file=out, width=120).print(view.table())
    text = out.getvalue()
    assert "2 of 4 runs, about 1 min 00 s left" in text
    assert "seed 1: federated 3/20" in text
    assert text.count("1/2") == 2
