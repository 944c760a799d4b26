"""`fedimaging sweep`: parsing only."""

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study to vary.")],
    epsilon: Annotated[str, typer.Option("--epsilon", help="Budgets; inf is the study without privacy.")] = "1,3,8,inf",
    unit: Annotated[
        str | None, typer.Option("--unit", help="patient, record, or both: patient,record [default: the study's own].")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each cell, from the study's seed on.")] = 3,
    override: Annotated[
        list[str] | None, typer.Option("--override", "-o", metavar="KEY=V1[,V2 …]", help="Change a key, or vary it.")
    ] = None,
    jobs: Annotated[str, typer.Option("--jobs", help="Processes, or auto: one a core.")] = "auto",
    ray_address: Annotated[str | None, typer.Option("--ray-address", help="An existing Ray cluster instead.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Sweep folder [default: sweeps/NAME of the study's file].")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Attack the first seed of each cell.")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also no privacy, pooled data, each hospital alone.")
    ] = True,
    reports: Annotated[bool, typer.Option("--reports", help="A page for each run too.")] = False,
    tuned_on: Annotated[
        str, typer.Option("--tuned-on", metavar="TEXT", help="On what the settings were chosen, for the page.")
    ] = "not stated",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only the result.")] = False,
) -> None:
    """Compare privacy budgets: runs over budgets, units, seeds and keys, as one table and one page. The same command goes on
    where a sweep was interrupted."""
    from fedimaging.runs.sweep import SweepOptions
    from fedimaging.runs.sweep import sweep as run_sweep
    from fedimaging.runs.sweep_grid import Asked, epsilons_of, units_of
    from fedimaging.runs.sweep_live import SweepView

    units = () if unit is None else units_of(unit)
    asked = Asked(study, epsilons_of(epsilon), units, seeds, tuple(override or ()), baselines, audit)
    with SweepView(quiet=quiet) as view:
        swept = run_sweep(asked, out or Path("sweeps") / study.stem, SweepOptions(jobs, ray_address, reports, tuned_on), view)
    typer.echo((swept.page.parent / "table.md").read_text(encoding="utf-8"))
    typer.echo(str(swept.page))
    if swept.violations:
        typer.echo("an attack found more than the guarantee allows: " + "; ".join(swept.violations), err=True)
        raise typer.Exit(1)
