"""Other code sent by the server, with Flower's own node as a control; and an error that should carry a patient out."""

import base64
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.node_pb2 import Node
from hostile import instruction
from messages import answer, ask, weights_of
from rows import Attack, Scene, Try
from stage import LIAR, SECRET_FILE, SECRET_PATIENT, STOCK, VICTIM, Stage, free_port

from fedimaging.federated.flower_http import FleetLine
from fedimaging.federated.superlink import HOSPITALS_CALLS
from fedimaging.keys import read_private


def marks_of(stage: Stage) -> Path:
    """Where the sent code writes a file for each time that any part of it runs."""
    return stage.folder / "marks"


def other_code(scene: Scene) -> Sequence[Try]:
    """The run carries an app that writes a file when it is imported or called. Who asks for it gets it; the hospital must
    not ask. All messages of this table are sent in the name of that run."""
    stage = scene.stage
    told = instruction("f" * 64, 1, weights_of(scene))
    tries = [
        *ask(scene, "study_not_approved", ("train, for that run's code", "train", told)),
        *ask(scene, "bad_message", ("query.run_code, for that run's code", "query.run_code", told)),
    ]
    bait = _fetched(scene)
    ran = sorted(marks_of(stage).glob("*")) if marks_of(stage).exists() else []
    return [
        *tries,
        Try("(was the code there for whoever asks, at this line?)", "yes", "yes" if bait else "no"),
        *asked_for(stage),
        Try("(files that the code wrote)", "0", str(len(ran))),
    ]


def asked_for(stage: Stage) -> list[Try]:
    """What the attacked hospital ever asked the server for, by the key that signed it."""
    calls = [call.path for call in stage.said_by(VICTIM)]
    more = ", ".join(set(calls) - HOSPITALS_CALLS) or "none"
    return [Try(f"(of the hospital's {len(calls)} calls so far, those that are not its eight)", "none", more)]


def _fetched(scene: Scene) -> bool:
    """Another hospital's key asks for the code, by Flower's own call, over the same line."""
    stage = scene.stage
    line = FleetLine(f"127.0.0.1:{stage.tap.port}", stage.server.ca, read_private(stage.folder / LIAR / "keys" / "node.key"))
    line.activate()
    found = line._client.GetFab(GetFabRequest(
        node=Node(node_id=scene.operator.node(LIAR)), hash_str=scene.operator.fab_hash, run_id=scene.operator.run_id))
    line.deactivate()
    line.close()
    return hashlib.sha256(found.fab.content).hexdigest() == scene.operator.fab_hash


def stock_node(scene: Scene) -> Try:
    """The control: Flower's own node, at the same line, with a registered key of its own, asked in the same run. It asks for
    the code that a hospital of ours never asks for (and starts a process for it)."""
    stage = scene.stage
    key = read_private(stage.folder / STOCK / "keys" / "node.key")
    path = stage.server.path / "stock.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    before = len(stage.tap.calls)
    stage.start_other("stock", [
        str(Path(sys.executable).parent / "flower-supernode"), "--superlink", f"127.0.0.1:{stage.tap.port}",
        "--root-certificates", str(stage.server.ca), "--auth-supernode-private-key", str(path), "--port", str(free_port()),
    ], FLWR_HOME=str(stage.server.path / "stock"), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # fmt: skip
    stage.until(lambda: scene.operator.online(STOCK), "Flower's own node")
    scene.operator.ask(scene.operator.node(STOCK), ("train", instruction("f" * 64, 1, weights_of(scene))))
    fetched = any(call.path.endswith("get-fab") for call in stage.tap.calls[before:])
    return Try("the same run and message, to Flower's own node: it asks for the code", "yes", "yes" if fetched else "no")


def patient_in_an_error(scene: Scene) -> Sequence[Try]:
    """One patient's scan is damaged, then gone, then the label holds the patient's name: each makes the hospital's own error
    name patient and file. Every byte that ever left is searched for both."""
    stage, scan, manifest = scene.stage, scene.stage.secret_scan, scene.stage.manifest
    picture, text = scan.read_bytes(), manifest.read_text()
    told = instruction(stage.study.fingerprint, 2, weights_of(scene))
    tries = []
    for words, harm in (
        ("a scan that is cut short", lambda: scan.write_bytes(picture[:40])),
        ("a scan that is gone", scan.unlink),
        ("a label that is a name", lambda: manifest.write_text(_named_label(text))),
    ):
        harm()
        stage.site.manifest.touch()
        tries.append(scene.refused(f"train, where the hospital has {words}", "data", answer(scene, "train", told).text))
        scan.write_bytes(picture)
        manifest.write_text(text)
    named = SECRET_FILE in (stage.folder / "hospital.log").read_text()
    return [*tries, Try("(does the hospital's own screen name the file?)", "yes", "yes" if named else "no"), *searched(stage)]


def _named_label(text: str) -> str:
    lines = text.splitlines()
    lines[1] = lines[1].rsplit(",", 1)[0] + f",{SECRET_PATIENT}"
    return "\n".join(lines) + "\n"


def searched(stage: Stage) -> list[Try]:
    """All that the hospital ever said, and all that the server keeps, for patient, file and folder in any usual writing."""
    said = b"\n".join(call.path.encode() + call.headers + call.body for call in list(stage.tap.calls))
    kept = b"".join(path.read_bytes() for path in stage.server.path.glob("state.db*"))
    folders = [str(stage.folder / name) for name in (VICTIM, "scans")]
    secrets = (SECRET_PATIENT, SECRET_FILE, stage.manifest.name, *folders)
    found = [f"{secret} {where}" for secret in secrets for where, data in (("said", said), ("kept", kept)) if _in(secret, data)]
    control = _in(VICTIM, said) and _in(VICTIM, kept)
    return [
        Try(f"(patient, file, folder in the {len(said) / 1e6:.1f} MB that left, and in the server's database)", "nowhere",
            ", ".join(found) or "nowhere"),
        Try("(and the hospital's name, which does leave)", "found", "found" if control else "not found"),
    ]


def _in(text: str, data: bytes) -> bool:
    plain = text.encode()
    ways = [plain, plain.lower(), plain.hex().encode(), text.encode("utf-16-le")]
    ways += [base64.b64encode(b"x" * shift + plain)[4 : 4 + 4 * (len(plain) // 3 - 1)] for shift in (1, 2, 3)]
    return any(way in data for way in ways)


FIRST = (Attack("other code sent", other_code),)
LAST = (Attack("an error that carries a patient out", patient_in_an_error, may_write=(f"{VICTIM}/store/",)),)
