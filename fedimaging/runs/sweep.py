"""`fedimaging sweep`: a grid of runs over privacy budgets, units, seeds and keys, from one study to one page."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedimaging.errors import DataError, FedimagingError, PrivacyError, RunError, StudyError
from fedimaging.runs import sweep_collect
from fedimaging.runs.report import complete_page
from fedimaging.runs.report_view import part, primary_metric
from fedimaging.runs.sweep_dir import SweepDir
from fedimaging.runs.sweep_grid import Asked, PlannedRun, expand
from fedimaging.runs.sweep_live import SweepView
from fedimaging.runs.sweep_pool import Pool, jobs_of
from fedimaging.runs.sweep_worker import do_elsewhere, task_of

NOT_STATED = "not stated"


@dataclass(frozen=True)
class SweepOptions:
    """How to work a sweep off, and what to say of it; none of it changes a number. `jobs`: processes, or `auto`.
    `ray_address`: an existing Ray cluster instead, whose machines see this one's folders. `reports`: a page for each run
    too. `tuned_on`: on what the study's settings were chosen, for the page."""

    jobs: str = "auto"
    ray_address: str | None = None
    reports: bool = False
    tuned_on: str = NOT_STATED


@dataclass(frozen=True)
class Swept:
    """A finished sweep: its page, and the runs in which an attack found more than the guarantee allows."""

    page: Path
    violations: tuple[str, ...]


def sweep(asked: Asked, out: Path, options: SweepOptions, view: SweepView) -> Swept:
    """Run what of the sweep is not done yet in folder `out`, then write its tables and its page.

    A killed sweep goes on when it is asked for again: finished runs are not done twice, a half run goes on from its last
    round, and the tables end the same to the byte (the times in runs.csv do not). Errors: StudyError, DataError,
    PrivacyError of any run before any trains; RunError for a folder that holds something else, and, after all others are
    done and tabled, for runs that failed.
    """
    runs = expand(asked)
    if options.ray_address is not None:
        from fedimaging.federated.ray_engine import check_cluster

        check_cluster(options.ray_address)
    folder = SweepDir(out.resolve())
    with folder.held(runs, baselines=asked.baselines):
        pending = [run for run in runs if not folder.is_done(run)]
        failed = _work(runs, pending, folder, options, view, asked)
        if options.reports:
            for run in runs:
                if folder.is_done(run):
                    complete_page(folder.run(run))
        violations = sweep_collect.collect(folder, runs, tuned_on=options.tuned_on)
        if failed:
            first = next(iter(failed))
            raise RunError(
                f"{len(failed)} of {len(runs)} runs failed, the others are in {str(out)!r}; {first}: {failed[first]} "
                "The same command tries them again."
            )
    return Swept(folder.path / "sweep.html", violations)


def _work(
    runs: Sequence[PlannedRun], pending: Sequence[PlannedRun], folder: SweepDir, options: SweepOptions, view: SweepView,
    asked: Asked,
) -> dict[str, str]:
    """Do the pending runs; returns the errors of those that failed."""
    facts = {"study": asked.study.name, "baselines": asked.baselines}
    if not pending:
        view.say(f"all {len(runs)} runs are finished; the tables are written again.")
        folder.write_plan(runs, facts)
        return {}
    jobs = jobs_of(options.jobs, len(pending))
    where = f"on the Ray cluster {options.ray_address}" if options.ray_address else f"{jobs} worker process(es)"
    with _carrier(folder, options, jobs) as carrier:
        done = {run.name: _value(folder, run) for run in runs if run not in pending}
        view.say(f"{len(runs)} runs, {len(done)} of them finished; {where}")
        _check_all(pending, folder, carrier)
        folder.write_plan(runs, facts)
        view.plan(runs, done, _metric(runs[0]), jobs)
        return _run_all(pending, folder, carrier, view, options)


class _Carrier(Protocol):
    """Does tasks: in processes of this machine, or on a Ray cluster."""

    def work_off(self, tasks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Events of the tasks; one `done` or `failed` each."""


def _carrier(folder: SweepDir, options: SweepOptions, jobs: int) -> AbstractContextManager[_Carrier]:
    if options.ray_address is None:
        return Pool(jobs, folder.log)
    from fedimaging.federated.ray_engine import RayCluster

    return RayCluster(do_elsewhere, options.ray_address)


def _check_all(pending: Sequence[PlannedRun], folder: SweepDir, carrier: _Carrier) -> None:
    """Every cell's study against its data, before anything trains: the first alone, so that the data are decoded once."""
    cells = {run.cell: run for run in pending if not (folder.run(run) / "study.yaml").exists()}
    tasks = [task_of("check", run, folder.run(run)) for run in cells.values()]
    for some in (tasks[:1], tasks[1:]):
        for event in carrier.work_off(some):
            if event["kind"] == "failed":
                fault = _FAULTS.get(event["fault"], RunError)
                raise fault(f"run {event['run']} of the sweep cannot work, so nothing was started: {event['text']}")


_FAULTS: Mapping[str, type[FedimagingError]] = {"StudyError": StudyError, "PrivacyError": PrivacyError, "DataError": DataError}


def _run_all(
    pending: Sequence[PlannedRun], folder: SweepDir, carrier: _Carrier, view: SweepView, options: SweepOptions
) -> dict[str, str]:
    by_name = {run.name: run for run in pending}
    longest_first = sorted(pending, key=lambda run: not run.baselines)  # so that no worker is left with a long one at the end
    tasks = [task_of("run", run, folder.run(run), reports=options.reports) for run in longest_first]
    failed: dict[str, str] = {}
    for event in carrier.work_off(tasks):
        value = _value(folder, by_name[event["run"]]) if event["kind"] == "done" else None
        view.event(event, value)
        if event["kind"] == "failed":
            failed[event["run"]] = event["text"]
    return failed


def _metric(run: PlannedRun) -> str:
    named = run.study.evaluation.metric
    return named or ("dice" if run.study.task.kind == "segmentation" else "auroc")


def _value(folder: SweepDir, run: PlannedRun) -> float | None:
    """The primary metric of a finished run."""
    report = folder.report(run)
    found = (part(report, "test").get(primary_metric(report)) or {}).get("value") if report else None
    return None if found is None else float(found)
