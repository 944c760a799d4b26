"""`fedimaging server …`: parsing only, as in `cli.py`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The operator of a federation of real hospitals.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The server's folder.")]
SiteName = Annotated[str, typer.Argument(metavar="NAME", help="The hospital's name, as the studies use it.")]


@app.command()
def init(
    folder: Folder,
    host: Annotated[str, typer.Option("--host", help="DNS name or address under which hospitals reach this server.")],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The one port that hospitals reach.")] = 8443,
    listen: Annotated[str, typer.Option("--listen", help="The address of this machine to listen on.")] = "0.0.0.0",
) -> None:
    """Make a server's folder: an authority, the server's certificate, secrets, an empty list of hospitals."""
    from fedimaging.runs.server_folder import ServerFolder, ServerSettings

    made = ServerFolder.create(folder, ServerSettings(host=host, port=port, listen=listen))
    typer.echo(f"give every hospital this file, and nothing else of the folder: {made.ca}")
    typer.echo(f"its site.yaml says: server: {host}:{port}")


@app.command("add-site")
def add_site(
    folder: Folder, name: SiteName,
    key: Annotated[Path, typer.Argument(metavar="NODE.pub", help="The hospital's public key.")],
    patients: Annotated[int | None, typer.Option("--patients", min=1, help="Its publicly declared number of patients.")] = None,
) -> None:
    """Admit a hospital by its public key; a running server lets it in at once."""
    from fedimaging.runs.serve import admit_if_running
    from fedimaging.runs.server_folder import ServerFolder

    opened = ServerFolder.open(folder)
    found = opened.add_site(name, key, patients)
    typer.echo(f"{name}: key {found}")
    typer.echo("compare this with the hospital, on the phone or face to face, before anybody trains.")
    admit_if_running(opened, typer.echo)


@app.command("remove-site")
def remove_site(folder: Folder, name: SiteName) -> None:
    """Shut a hospital out. Its key is never admitted again."""
    from fedimaging.runs.serve import admit_if_running
    from fedimaging.runs.server_folder import ServerFolder

    opened = ServerFolder.open(folder)
    opened.remove_site(name)
    typer.echo(f"{name} was removed.")
    admit_if_running(opened, typer.echo)


@app.command()
def renew(folder: Folder) -> None:
    """Make a new server certificate, signed by the same authority; hospitals change nothing. Start the server again after."""
    from fedimaging.runs.certificates import days_left
    from fedimaging.runs.server_folder import ServerFolder

    opened = ServerFolder.open(folder)
    opened.renew()
    opened.audit("certificate_renewed")
    typer.echo(f"the new certificate is valid for {days_left(opened.certificate)} days.")


@app.command()
def start(folder: Folder) -> None:
    """Run the server that hospitals join, until it is stopped (Ctrl-C or SIGTERM)."""
    from fedimaging.runs.serve import start as serve
    from fedimaging.runs.server_folder import ServerFolder

    serve(ServerFolder.open(folder), typer.echo)


@app.command()
def run(
    folder: Folder,
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study, as the hospitals approved it.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    wait_minutes: Annotated[
        float | None, typer.Option("--wait-minutes", min=0, help="Then begin with as many as a round needs [default: never].")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only the result.")] = False,
) -> None:
    """Run a study over its hospitals, once they have joined, and write the report. The server must be running."""
    import math
    import warnings

    from fedimaging.runs.live import LiveView
    from fedimaging.runs.serve_study import run_study
    from fedimaging.runs.server_folder import ServerFolder
    from fedimaging.study.load import load

    warnings.filterwarnings("ignore", category=FutureWarning)  # third-party chatter
    resolved = load(study)
    patience = math.inf if wait_minutes is None else 60 * wait_minutes
    private = "ε: the hospitals'" if resolved.privacy else "no DP"
    with LiveView(resolved.federation.rounds, quiet=quiet, without_epsilon=private) as view:
        path = run_study(ServerFolder.open(folder), resolved, resume=resume, patience_seconds=patience, view=view)
    typer.echo(str(path.with_name("report.html")))


@app.command()
def status(folder: Folder) -> None:
    """Who has joined, which runs there are, and how long the certificate is valid."""
    from fedimaging.runs.serve import as_lines
    from fedimaging.runs.serve import status as look
    from fedimaging.runs.server_folder import ServerFolder

    typer.echo("\n".join(as_lines(look(ServerFolder.open(folder)))))
