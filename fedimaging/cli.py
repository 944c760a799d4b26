"""The command line: parsing only. Every command imports what it needs when it runs, so that --help is instant."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fedimaging import __version__
from fedimaging.cli_audit import audit
from fedimaging.cli_release import monitor, predict, release, release_key, trace, verify
from fedimaging.cli_server import app as server_app
from fedimaging.cli_site import app as site_app
from fedimaging.cli_sweep import sweep
from fedimaging.errors import FedimagingError

app = typer.Typer(
    name="fedimaging",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated medical imaging whose privacy claim is true per patient and kept by the hospital.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at data before anything trains on it.")
app.add_typer(data_app, name="data")
ledger_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What was spent on a hospital's patients.")
app.add_typer(ledger_app, name="ledger")
app.add_typer(server_app, name="server")
app.add_typer(site_app, name="site")

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study to run.")]
LedgerPath = Annotated[Path, typer.Argument(metavar="LEDGER.sqlite", help="The hospital's ledger.")]
HeadPath = Annotated[Path | None, typer.Option("--head", help="Its head file [default: beside it].")]
Overrides = Annotated[
    list[str] | None, typer.Option("--override", "-o", metavar="KEY=VALUE", help="Change one key, e.g. -o federation.rounds=3.")
]


def main() -> None:
    """Run the command line; an error raised on purpose is one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except FedimagingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # typer turns Ctrl-C into this, without a word
            print("interrupted; what was finished is kept, go on with --resume (a sweep: the same command).", file=sys.stderr)
        raise


def _version(value: bool) -> None:
    if value:
        typer.echo(f"fedimaging {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def simulate(
    study: StudyPath,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [default: runs/NAME-FINGERPRINT].")] = None,
    override: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also train pooled data and each hospital alone.")] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Also train without each hospital in turn, and test there.")
    ] = False,
    workers: Annotated[str, typer.Option("--workers", help="Processes, or auto: measured.")] = "auto",
    engine: Annotated[str, typer.Option("--engine", help="in_process, or ray: Flower's Ray engine.")] = "in_process",
    ray_address: Annotated[str | None, typer.Option("--ray-address", help="An existing Ray cluster.")] = None,
    track: Annotated[str | None, typer.Option("--track", help="tensorboard or mlflow, into the run folder.")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Draw the page and its pictures.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only the result.")] = False,
) -> None:
    """Train a federation of simulated hospitals on this machine, and write a report."""
    from fedimaging.study.load import load

    resolved = load(study, override or [])
    folder = out or Path("runs") / f"{resolved.name}-{resolved.fingerprint[:8]}"
    options = replace(_options(resume, baselines, workers, engine, ray_address, track, report), leave_one_out=leave_one_out)

    def work() -> None:
        import json

        from fedimaging.runs.assemble import headline
        from fedimaging.runs.live import LiveView
        from fedimaging.runs.simulate import simulate

        with LiveView(resolved.federation.rounds, quiet=quiet) as view:
            path = simulate(resolved, folder, options, view)
        typer.echo(headline(json.loads(path.read_text(encoding="utf-8"))))
        typer.echo(str(path.with_name("report.html") if report else path))

    _quietly(work)


def _options(
    resume: bool, baselines: bool, workers: str, engine: str, ray_address: str | None, track: str | None, report: bool
) -> Any:
    from fedimaging.errors import StudyError, bad_value

    if workers != "auto" and not (workers.isascii() and workers.isdigit() and int(workers) >= 1):
        raise StudyError(bad_value("--workers", workers, "is neither auto nor a whole number of at least 1"))
    if engine not in ("in_process", "ray"):
        raise StudyError(bad_value("--engine", engine, "is neither in_process nor ray"))
    from fedimaging.runs.options import Options

    return Options(resume, baselines, workers if workers == "auto" else int(workers), engine, ray_address, track, report)


def _quietly(work: Callable[[], None]) -> None:
    """Run with third-party chatter off: hospitals' screens show our words only."""
    import logging
    import warnings

    for name in ("flwr", "absl", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    work()


app.command()(sweep)
app.command()(audit)
app.command()(release)
app.command("release-key")(release_key)
app.command()(verify)
app.command()(predict)
app.command()(monitor)
app.command()(trace)


@app.command()
def calibrate(
    study: StudyPath,
    override: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what privacy would cost and mean at every hospital, before anybody trains."""
    from fedimaging.study.load import load

    resolved = load(study, override or [])

    def work() -> None:
        import json

        from fedimaging.runs.calibrate import as_lines, calibrate_study

        found = calibrate_study(resolved)
        typer.echo(json.dumps(found.as_json(), indent=1, allow_nan=False) if as_json else "\n".join(as_lines(found)))

    _quietly(work)


@app.command()
def pretrain(
    study: StudyPath,
    on: Annotated[Path, typer.Option("--on", metavar="PUBLIC.yaml", help="A study whose images are generated or public.")],
    out: Annotated[Path | None, typer.Option("--out", help="Weights file [default: the study's model.weights].")] = None,
    override: Overrides = None,
) -> None:
    """Fit the fixed stage of a study's network to public or generated images, before any hospital trains."""
    from fedimaging.study.load import load

    resolved, public = load(study, override or []), load(on)

    def work() -> None:
        from fedimaging.runs.pretrain import pretrain

        path, digest = pretrain(resolved, public, out)
        typer.echo(f"{path}: pin it in the study with\n  weights: {path}\n  weights_sha256: {digest}")

    _quietly(work)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run folders.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write a comparison [default: comparison.html].")] = None,
) -> None:
    """Build a run's page again, or compare several runs on one page."""
    from fedimaging.runs.report import compare, write_page

    typer.echo(str(write_page(runs[0]) if len(runs) == 1 and out is None else compare(runs, out or Path("comparison.html"))))


@data_app.command("check")
def data_check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST.csv", help="One row a scan.")],
    label: Annotated[list[str] | None, typer.Option("--label", help="Label column(s) to check.")] = None,
    mask: Annotated[bool, typer.Option("--mask", help="Every scan needs a mask.")] = False,
    classes: Annotated[int, typer.Option("--classes", help="Labels and mask values lie below this.")] = 2,
    column: Annotated[list[str] | None, typer.Option("--column", help="Rename, e.g. patient_id=case_id.")] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG) here.")] = None,
) -> None:
    """Say what is wrong with a manifest, row by row, and count patients per site. Exit code 2 where it cannot be used."""
    from fedimaging.data.check_command import run_check

    raise typer.Exit(run_check(manifest, label or [], mask, classes, column or [], sheet, typer.echo))


@ledger_app.command("create")
def ledger_create(ledger: LedgerPath, head: HeadPath = None) -> None:
    """Make the ledger of a hospital that never trained; one that is or ever was there is left alone."""
    from fedimaging.privacy.ledger_text import create

    typer.echo("\n".join(create(ledger, head)))


@ledger_app.command("show")
def ledger_show(ledger: LedgerPath, head: HeadPath = None) -> None:
    """Every event in words, and what they add up to."""
    from fedimaging.privacy.ledger_text import show

    typer.echo("\n".join(show(ledger, head)))


@ledger_app.command("verify")
def ledger_verify(ledger: LedgerPath, head: HeadPath = None) -> None:
    """Check chain, head and file. Exit code 2 where anything is not in order."""
    from fedimaging.privacy.ledger_verify import verdict, verify

    typer.echo(verdict(verify(ledger, head)))


@ledger_app.command("export")
def ledger_export(
    ledger: LedgerPath,
    out: Annotated[Path, typer.Option("--out", help="Where to write the lines of JSON.")],
    head: HeadPath = None,
) -> None:
    """Write all events as lines of JSON, for an auditor."""
    from fedimaging.privacy.ledger_text import export

    typer.echo("\n".join(export(ledger, out, head)))


@ledger_app.command("replay")
def ledger_replay(
    ledger: LedgerPath,
    delta: Annotated[float, typer.Option("--delta", help="The delta of the claim, e.g. 1e-5.")],
    head: HeadPath = None,
) -> None:
    """Compute epsilon again from the events, after each one that changed it."""
    from fedimaging.privacy.accounting import epsilon
    from fedimaging.privacy.ledger_text import replay

    typer.echo("\n".join(replay(ledger, delta, epsilon, head)))


if __name__ == "__main__":
    main()
