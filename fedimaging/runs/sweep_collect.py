"""From the finished runs of a sweep to its tables and its page."""

from collections.abc import Sequence

from fedimaging.files import write_json, write_text
from fedimaging.runs.report_view import primary_metric
from fedimaging.runs.sweep_dir import SweepDir
from fedimaging.runs.sweep_grid import PlannedRun
from fedimaging.runs.sweep_page import SweepFacts, write_sweep_page
from fedimaging.runs.sweep_rows import Row, facts_of, rows_of, write_results, write_runs
from fedimaging.runs.sweep_summary import as_json, cells_of
from fedimaging.runs.sweep_tables import latex, markdown, sweep_table


def collect(folder: SweepDir, runs: Sequence[PlannedRun], *, tuned_on: str) -> tuple[str, ...]:
    """Write results.csv, runs.csv, summary.json, table.md, table.tex and sweep.html from the runs that are finished; nothing
    where none is. Returns the attacks that found more than the guarantee allows, in words. Error: RunError.
    """
    done = [(run, report) for run in runs if (report := folder.report(run)) is not None]
    if not done:
        return ()
    audits = [(run, audit) for run, _ in done if run.audit and (audit := folder.audit(run)) is not None]
    found = {run.name: audit for run, audit in audits}
    rows: list[Row] = [row for run, report in done for row in rows_of(run, report, found.get(run.name))]
    facts = [(run, facts_of(report)) for run, report in done]
    axes = list(dict.fromkeys(key for run in runs for key, _ in run.keys))
    metric, seeds = primary_metric(done[0][1]), sorted({run.seed for run, _ in done})
    cells = cells_of(rows, metric)
    table = sweep_table(cells, metric, axes, len(seeds))
    write_results(folder.path / "results.csv", rows, axes)
    write_runs(folder.path / "runs.csv", facts, axes)
    write_json(folder.path / "summary.json", as_json(cells, metric, axes, seeds))
    write_text(folder.path / "table.md", markdown(table))
    write_text(folder.path / "table.tex", latex(table))
    violations = tuple(
        f"{run.name}: {attack['name']}" for run, audit in audits for attack in audit.get("attacks") or ()
        if attack.get("verdict") == "violation"
    )
    write_sweep_page(folder.path / "sweep.html", SweepFacts(
        planned=len(runs), reports=tuple(done), facts=tuple(facts), cells=tuple(cells), metric=metric, table=table,
        audits=tuple(audits), violations=violations, tuned_on=tuned_on,
    ))
    return violations
