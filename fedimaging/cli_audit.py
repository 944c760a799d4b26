"""`fedimaging audit`: parsing only, as in `cli.py`."""

from pathlib import Path
from typing import Annotated

import typer


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished folder of `fedimaging simulate`.")],
    attacks: Annotated[
        str, typer.Option("--attacks", help="Some of: membership,canaries,inversion.")
    ] = "membership,canaries,inversion",
    shadows: Annotated[int, typer.Option("--shadows", help="Shadow federations of the membership attacks, in pairs.")] = 8,
    canaries: Annotated[int, typer.Option("--canaries", help="Canary patients of the one-run audit.")] = 200,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes that train shadows side by side.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only the result.")] = False,
) -> None:
    """Attack a finished run. Exit code 1 where an attack finds more than the guarantee allows. The same command goes on where
    an audit was interrupted."""
    import logging
    import warnings

    from fedimaging.runs.audit import audit as attack
    from fedimaging.runs.audit import headline
    from fedimaging.runs.audit_options import AuditOptions

    for name in ("flwr", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    options = AuditOptions(tuple(name.strip() for name in attacks.split(",") if name.strip()), shadows, canaries, jobs)
    tree = attack(run, options, (lambda text: None) if quiet else (lambda text: typer.echo(text, err=True)))
    typer.echo("\n".join(headline(tree)))
    typer.echo(str(run / "audit.html"))
    if tree["verdict"] == "violation":
        raise typer.Exit(1)
