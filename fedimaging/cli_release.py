"""`fedimaging release`, `release-key`, `verify`, `predict`, `trace`: parsing only, as in `cli.py`."""

from pathlib import Path
from typing import Annotated

import typer

ReleasePath = Annotated[Path, typer.Argument(metavar="RELEASE", help="A release folder.")]
PublicKey = Annotated[Path | None, typer.Option("--public-key", help="The releaser's public key, got by another way.")]


def release(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished folder of `fedimaging simulate`.")],
    approved_by: Annotated[str, typer.Option("--approved-by", help="The person who releases the model.")],
    role: Annotated[str, typer.Option("--role", help="That person's role.")],
    reason: Annotated[str, typer.Option("--reason", help="Why the model is released.")],
    key: Annotated[Path, typer.Option("--key", help="The person's private Ed25519 key (see release-key).")],
    waive: Annotated[list[str] | None, typer.Option("--waive", metavar="CHECK=REASON", help="Let a failed check pass.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The release folder [default: RUN/release].")] = None,
) -> None:
    """Check a run against the limits of its study, and write a signed release. Exit code 2, and nothing, where a check fails."""
    from fedimaging.release.card import People
    from fedimaging.release.checks import parse_waivers
    from fedimaging.release.folder import release as make
    from fedimaging.release.signing import read_signing_key

    folder = make(run, People(approved_by, role, reason), read_signing_key(key), parse_waivers(waive or []), out)
    typer.echo(str(folder / "card.html"))


def release_key(
    key: Annotated[Path, typer.Argument(metavar="KEY_FILE", help="Where the private key goes; the public one beside it, .pub.")],
) -> None:
    """Make the Ed25519 key with which one person signs releases."""
    from fedimaging.release.signing import key_fingerprint, make_signing_key, read_verifying_key

    public = make_signing_key(key)
    typer.echo(f"{key}.pub: fingerprint {key_fingerprint(read_verifying_key(public, str(key)))}")


def verify(folder: ReleasePath, public_key: PublicKey = None) -> None:
    """Check every byte of a release and its signature. Exit code 2, naming the file, where anything was altered."""
    from fedimaging.release.signing import read_key_text
    from fedimaging.release.verify import verify as check

    manifest = check(folder, None if public_key is None else read_key_text(public_key))
    whose = "the key given" if public_key else f"a key of its own, fingerprint {manifest['key_fingerprint']}: compare it"
    typer.echo(f"in order: {len(manifest['files'])} files, signed with {whose}")
    who = f"{manifest['approved_by']} ({manifest['role']}), {manifest['created']}"
    typer.echo(f"model {manifest['model_sha256']}, released by {who}")


def predict(
    folder: ReleasePath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, folders of images, or a manifest (.csv).")],
    out: Annotated[Path, typer.Option("--out", help="Where results and the log go.")] = Path("predictions"),
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="A map of where the answer was found, beside each.")] = True,
    public_key: PublicKey = None,
) -> None:
    """Predict images with a release, verified first; each is one line of a log. Exit code 2 where an image could not be read."""
    from fedimaging.release.opened import open_release
    from fedimaging.release.predict import TABLE, images_in
    from fedimaging.release.predict import predict as predict_all
    from fedimaging.release.signing import read_key_text

    release = open_release(folder, None if public_key is None else read_key_text(public_key))
    results = predict_all(release, images_in(release, images), out, typer.echo, maps=maps)
    failed = sum(result.fault is not None for result in results)
    flagged = sum(bool(result.facts.get("flagged")) for result in results)
    typer.echo(f"{out / TABLE}: {len(results) - failed} predicted, {flagged} flagged, {failed} not readable")
    if failed:
        raise typer.Exit(2)


def trace(
    folder: ReleasePath,
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The log of predictions.")],
    what: Annotated[str, typer.Argument(metavar="LINE|IMAGE", help="A line of the log (from 1), or an image.")],
    public_key: PublicKey = None,
) -> None:
    """Say where a prediction came from: model, people, study, and what every hospital's ledger says was spent."""
    from fedimaging.release.signing import read_key_text
    from fedimaging.release.trace import trace as follow
    from fedimaging.release.verify import verify as check

    manifest = check(folder, None if public_key is None else read_key_text(public_key))
    typer.echo("\n".join(follow(folder, manifest, log, what)))


def monitor(
    folder: ReleasePath,
    new: Annotated[Path, typer.Argument(metavar="NEW_MANIFEST.csv", help="New scans, one row each, perhaps with labels.")],
    out: Annotated[Path, typer.Option("--out", help="Where page, log and figures go.")] = Path("monitoring"),
    acknowledge: Annotated[str | None, typer.Option("--acknowledge", metavar="NAME", help="Who saw the newest look.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="What that person makes of it, in a line.")] = None,
    public_key: PublicKey = None,
) -> None:
    """Compare new scans with what a release was tested on, by groups too. Exit code 1 for an `act` that nobody acknowledged."""
    from fedimaging.release import monitor as monitoring
    from fedimaging.release.opened import open_release
    from fedimaging.release.signing import read_key_text

    release = open_release(folder, None if public_key is None else read_key_text(public_key))
    if acknowledge is not None:
        tree = monitoring.acknowledge(release, new, out, who=acknowledge, why=reason or "")
        typer.echo(f"acknowledged by {acknowledge}: level {tree['level']}")
        return
    tree = monitoring.look(release, new, out)
    typer.echo("\n".join([*monitoring.as_lines(tree), str(out / monitoring.PAGE)]))
    if tree["level"] == "act":
        raise typer.Exit(1)
