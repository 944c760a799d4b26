"""`fedimaging site …`: parsing only, as in `cli.py`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="A hospital's own node, in a folder that it alone controls.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The hospital's site folder.")]
Who = Annotated[str | None, typer.Option("--name", help="Who decides this.")]
Why = Annotated[str | None, typer.Option("--reason", help="Why, in a line; it is kept with the decision.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option("--name", help="The hospital's name, as studies and operator use it.")],
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The federation's server.")],
    ca: Annotated[Path | None, typer.Option("--ca", help="The authority's certificate (ca.crt), from the operator.")] = None,
    data: Annotated[str, typer.Option("--data", help="The folder of the images.")] = "data",
    manifest: Annotated[str, typer.Option("--manifest", help="The manifest in that folder.")] = "manifest.csv",
    contact: Annotated[str, typer.Option("--contact", help="Who answers for this node.")] = "",
) -> None:
    """Make a site folder: settings and policy to edit, a key, an empty ledger and log. Never overwrites anything."""
    from fedimaging.site.init import make_site_folder

    made = make_site_folder(folder, name=name, server=server, ca=ca, root=data, manifest=manifest, contact=contact)
    typer.echo(f"made {made.path}; now edit site.yaml and policy.yaml in it.")
    if ca is None:
        typer.echo("put the authority's certificate into it as ca.crt; the operator has it.")
    _tell_key(made.path)


@app.command()
def key(
    folder: Folder,
    new: Annotated[bool, typer.Option("--new", help="Make a new key in place of this one, which was lost or seen.")] = False,
) -> None:
    """Print this hospital's public key and its fingerprint, for the operator of the server."""
    from fedimaging.site.folder import SiteFolder
    from fedimaging.site.init import replace_key

    opened = SiteFolder.open(folder)
    if new:
        replace_key(opened)
    _tell_key(opened.path)


def _tell_key(path: Path) -> None:
    from fedimaging.keys import fingerprint, read_public
    from fedimaging.site.folder import SiteFolder

    folder = SiteFolder(path)
    public = read_public(folder.public_key_file)
    typer.echo(f"send this file to the operator of the server: {folder.public_key_file}\n{public.strip()}")
    typer.echo(f"and compare this by another way, for example on the phone: {fingerprint(public)}")


@app.command()
def check(folder: Folder, as_json: AsJson = False) -> None:
    """Would this hospital train if the server asked now? Exit code 0 where it would, 2 where something stands in the way."""
    _quiet()
    from fedimaging.runs.site_probe import registered
    from fedimaging.site.check import check as look
    from fedimaging.site.finding import lines

    found = look(folder, registered)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(lines(found)))
    raise typer.Exit(2 if any(one.ok is False for one in found) else 0)


@app.command()
def approve(
    folder: Folder,
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study, as the operator sent it.")],
    name: Who = None,
    reason: Why = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")] = False,
) -> None:
    """Show in plain words what a study would do here; approve it, if the policy allows it and a person says so."""
    _quiet()
    from fedimaging.errors import SiteError
    from fedimaging.site.folder import SiteFolder
    from fedimaging.site.proposal import approve as record
    from fedimaging.site.proposal import propose

    opened = SiteFolder.open(folder)
    proposal = propose(opened, study)
    typer.echo("\n".join([*proposal.lines(), ""]))
    if not proposal.reasons:
        name, reason = _person(name, reason)
        if not yes and not (sys.stdin.isatty() and typer.confirm("Approve this study?")):
            raise SiteError("nothing was approved; say --yes where nobody can be asked.")
    record(opened, proposal, who=name or "", why=reason or "")
    typer.echo(f"approved: study {proposal.study.fingerprint}")


@app.command()
def revoke(
    folder: Folder,
    study: Annotated[str, typer.Argument(metavar="FINGERPRINT", help="The study's fingerprint, or how it begins.")],
    name: Who = None,
    reason: Why = None,
) -> None:
    """Take an approval back; the hospital refuses the study from the server's next message on."""
    from fedimaging.site.approvals import revoke as record
    from fedimaging.site.folder import SiteFolder

    opened = SiteFolder.open(folder)
    name, reason = _person(name, reason)
    taken = record(opened, study, who=name, why=reason)
    typer.echo(f"revoked: study {taken.study} ({taken.name})")


@app.command()
def studies(folder: Folder) -> None:
    """Every study that was ever approved here, by whom, when and why, and how it stands."""
    from fedimaging.site.folder import SiteFolder
    from fedimaging.site.status import study_lines

    typer.echo("\n".join(study_lines(SiteFolder.open(folder))))


@app.command()
def run(folder: Folder) -> None:
    """Join the federation and stay: reconnects for ever, goes on with what a crash interrupted, ends cleanly on SIGTERM."""
    _quiet()
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("fedimaging").setLevel(logging.INFO)
    from fedimaging.runs.site_run import run_hospital
    from fedimaging.site.folder import SiteFolder

    run_hospital(SiteFolder.open(folder), lambda text: typer.echo(text, err=True))


@app.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """How things stand: files in order, what is left of the budgets, studies, refusals."""
    from fedimaging.site.folder import SiteFolder
    from fedimaging.site.status import status as look
    from fedimaging.site.status import status_lines

    opened = SiteFolder.open(folder)
    typer.echo(json.dumps(look(opened), indent=1, ensure_ascii=False) if as_json else "\n".join(status_lines(opened)))


@app.command()
def ledger(folder: Folder) -> None:
    """What was spent on this hospital's patients, event by event. Exit code 2 where the ledger is not in order."""
    from fedimaging.site.folder import SiteFolder
    from fedimaging.site.status import ledger_lines

    typer.echo("\n".join(ledger_lines(SiteFolder.open(folder))))


@app.command()
def log(
    folder: Folder,
    everything: Annotated[bool, typer.Option("--all", help="Every event, not only what left.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only check the chain. Exit code 2 where it is broken.")] = False,
) -> None:
    """What left this hospital: when, of which study and round, how many bytes, norm, epsilon."""
    from fedimaging.site.folder import SiteFolder

    opened = SiteFolder.open(folder)
    if verify:
        from fedimaging.site.audit_log import verdict

        for path in (opened.audit_file, opened.approvals_file):
            typer.echo(f"{path.name}: {verdict(path)}")
        return
    from fedimaging.site.status import event_lines, log_lines

    typer.echo("\n".join(event_lines(opened) if everything else log_lines(opened)))


@app.command()
def report(
    folder: Folder,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write it [default: report.html in the folder].")] = None,
) -> None:
    """Write a page for the privacy officer: what was approved, what ran, what it cost, what left. One file, no network."""
    from fedimaging.runs.site_report import write_site_page
    from fedimaging.site.folder import SiteFolder

    typer.echo(str(write_site_page(SiteFolder.open(folder), out)))


def _person(name: str | None, reason: str | None) -> tuple[str, str]:
    """Name and reason of whoever decides, asked for where somebody is there to answer. Error: SiteError."""
    from fedimaging.errors import SiteError

    told = {"name": name, "reason": reason}
    for what, question in (("name", "Who decides this?"), ("reason", "Why?")):
        if told[what] is None:
            if not sys.stdin.isatty():
                raise SiteError(f"--{what} is missing; say who decides, and why.")
            told[what] = str(typer.prompt(question))
    return str(told["name"]), str(told["reason"])


def _quiet() -> None:
    """Third-party chatter off: hospitals' screens show our words only."""
    import logging
    import warnings

    for name in ("flwr", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
