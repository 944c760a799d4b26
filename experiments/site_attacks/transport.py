"""Attacks below the messages: size, wrong certificates, strangers, and a server whose answers are no answers."""

import gzip
import json
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx
import numpy as np
from flwr.app import Array, Message
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from hostile import instruction
from messages import weights_of
from rows import Attack, Scene, Try
from stage import LIAR, VICTIM
from tap import Line

from fedimaging.errors import FedimagingError, LinkRefused, LinkUntrusted, SiteRefusal
from fedimaging.federated import wire
from fedimaging.federated.flower_http import FleetLine
from fedimaging.federated.flower_internals import SUPERLINK_NODE_ID
from fedimaging.federated.rounds import checked_update
from fedimaging.keys import fingerprint, make_key, public_text, read_private
from fedimaging.results import SiteUpdate
from fedimaging.runs.certificates import issue, make_authority
from fedimaging.site import audit_log
from fedimaging.site.site import TrainInstruction

TEN_GB = 10 * 10**9
_HANGS_UP_MB = 24.0  # 16 MiB that a hospital reads of an object, and what the kernel's buffers hold
_TIMES = 3
_EXIT = json.dumps(FlowerError(ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE, "no").to_json("install another version")).encode()


@contextmanager
def speaking(scene: Scene, path: str, speak: Callable[[Line], None]) -> Iterator[Callable[[], int]]:
    """While this lasts, calls that end in `path` are answered by `speak`; yields how often that was."""
    spoken = 0

    def answer(line: Line, _: bytes) -> bool:
        nonlocal spoken
        if not line.path.endswith(path):
            return False
        spoken += 1
        speak(line)
        return True

    scene.stage.tap.speak = answer
    try:
        yield lambda: spoken
    finally:
        scene.stage.tap.speak = None


def _borne(scene: Scene, words: str, path: str, speak: Callable[[Line], None], times: int = _TIMES) -> Try:
    """A hostile answer, given so many times, that the hospital must bear: it asks again, and nothing else happens."""
    with speaking(scene, path, speak) as spoken:
        scene.stage.until(lambda: spoken() >= times or scene.stage.hospital.poll() is not None, f"{times} calls of {path}")
    return Try(words, "asked again", "asked again" if scene.stage.hospital.poll() is None else "the process ended")


def _poured(scene: Scene, words: str, path: str, part: bytes, *, chunked: bool = False) -> Try:
    """An answer of gigabytes: the hospital must hang up."""
    tap = scene.stage.tap
    tap.poured = tap.pours = 0
    borne = _borne(scene, words, path, lambda line: line.pour(b"", part, TEN_GB, chunked=chunked))
    taken = tap.poured / max(1, tap.pours) / 1e6
    text = f"hung up before {_HANGS_UP_MB:.0f} MB"
    if borne.got != borne.expected:
        return Try(words, text, borne.got)
    return Try(words, text, text if taken < _HANGS_UP_MB else f"took {taken:.0f} MB")


def ten_gigabytes(scene: Scene) -> Sequence[Try]:
    """As a message, as the parts of one, folded into one megabyte, and as a head that claims them."""
    operator, node = scene.operator, scene.operator.node(VICTIM)
    told = instruction(scene.stage.study.fingerprint, 2, weights_of(scene))
    declared = operator.until_answered(lambda: operator.declare(node, told, TEN_GB // (5 * 2**20)))
    chunk = np.random.default_rng(0).random(60_000, dtype=np.float32)
    array, sizes = instruction(scene.stage.study.fingerprint, 2, chunk), list[int]()

    def fold() -> str:
        message_id, size = operator.post_folded(node, array, TEN_GB // chunk.nbytes)
        sizes.append(size)
        return message_id

    folded = operator.until_answered(fold)
    claim = instruction(scene.stage.study.fingerprint, 2, Array("float32", (4,), "numpy.ndarray", _claimed(TEN_GB // 4)))
    return [
        scene.refused("a message of 1907 parts of 5 MiB, declared", "message_too_large", declared.text),
        scene.refused(f"an array that lists its chunk 41666 times, {sizes[0] / 1e6:.1f} MB", "message_too_large", folded.text),
        scene.refused("70 bytes that claim to be 10 GB of weights", "bad_message", operator.ask(node, ("train", claim))[0].text),
        _endless_part(scene),
    ]  # fmt: skip


def _claimed(numbers: int) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({numbers},), }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _endless_part(scene: Scene) -> Try:
    """A message whose parts are answered with 10 GB each."""
    tap, operator = scene.stage.tap, scene.operator
    tap.poured = tap.pours = 0
    part = bytes(2**20)
    with speaking(scene, "pull-object", lambda line: line.pour(b"\x1a", part, TEN_GB)):
        told = instruction(scene.stage.study.fingerprint, 2, weights_of(scene))
        code = operator.until_answered(lambda: operator.declare(operator.node(VICTIM), told, 0)).text
    taken = tap.poured / max(1, tap.pours) / 1e6
    got = code if tap.pours and taken < _HANGS_UP_MB else f"{code}, {taken:.0f} MB taken in {tap.pours} answers"
    return scene.refused("parts that are poured without end", "message_too_large", got)


def endless_answers(scene: Scene) -> Sequence[Try]:
    """Gigabytes in place of an answer, plain and packed, and small answers that unfold."""
    part, packed = bytes(2**20), gzip.compress(bytes(10**9), 9)
    empty = b"\x12\x00" * 2**19
    return [
        _poured(scene, "10 GB for a list of messages", "pull-messages", part),
        _poured(scene, "10 GB for a heartbeat", "send-node-heartbeat", part),
        _poured(scene, "an answer without end, which does not say how long it is", "pull-messages", part, chunked=True),
        _poured(scene, "10 GB of messages without content", "pull-messages", empty),
        _borne(scene, "3.9 MB of messages without content", "pull-messages",
               lambda line: line.answer(200, b"\x12\x00" * 1_950_000 + b"\x1a\x00" * 10, content_type=PROTOBUF_MEDIA_TYPE)),
        _borne(scene, "1 MB of gzip that is 1 GB", "pull-messages",
               lambda line: line.answer(200, packed, content_type=PROTOBUF_MEDIA_TYPE, content_encoding="gzip")),
        _borne(scene, "an error whose text is said to be packed (charset=zlib_codec)", "pull-messages",
               lambda line: line.answer(401, zlib.compress(bytes(10**9), 9), content_type="text/plain; charset=zlib_codec")),
    ]  # fmt: skip


def no_answers(scene: Scene) -> Sequence[Try]:
    """Nonsense to every call, and answers that mean to lead elsewhere."""
    noise = np.random.default_rng(0)
    calls = scene.stage.tap.calls
    first = len(calls)
    tries = [
        _borne(scene, f"random bytes to {path}", path, lambda line: line.answer(200, b"\xff" + noise.bytes(40)))
        for path in ("pull-messages", "send-node-heartbeat")
    ]
    tries += [
        _borne(scene, "401 with a date of no time zone", "pull-messages",
               lambda line: _dated(line, "Mon, 23 Nov 2020 10:00:00 -0000")),
        _borne(scene, "an error in whose text Flower's own client ends its process", "pull-messages",
               lambda line: line.answer(400, _EXIT, content_type="application/json")),
        _borne(scene, "random bytes to activate-node, after a 401", "", _shut_out_then_noise(), times=6),
        _borne(scene, "a redirect to another path", "pull-messages",
               lambda line: line.answer(307, b"", location=f"https://127.0.0.1:{scene.stage.tap.port}/v1/fleet/elsewhere")),
        _borne(scene, "1000 cookies", "pull-messages", _cookies, times=2),
    ]  # fmt: skip
    time.sleep(4)  # a few honest calls, which would carry the cookies
    led = [call.path for call in calls[first:] if "elsewhere" in call.path]
    fed = [call.path for call in calls[first:] if b"cookie" in call.headers.lower()]
    return [*tries, Try("(was a redirect followed, a cookie sent?)", "no", f"{len(led)}, {len(fed)}" if led or fed else "no")]


def _dated(line: Line, date: str) -> None:
    line.send_response_only(401)
    line.send_header("date", date)
    line.send_header("content-length", "0")
    line.end_headers()


def _shut_out_then_noise() -> Callable[[Line], None]:
    def speak(line: Line) -> None:
        line.answer(*((200, b"\xff\xff\xff") if line.path.endswith("activate-node") else (401, b"no")))

    return speak


def _cookies(line: Line) -> None:
    line.send_response(200)
    for number in range(90):  # Python's own client reads at most a hundred headers
        line.send_header("set-cookie", f"c{number}={'x' * 500}; Path=/")
    line.send_header("content-length", "0")
    line.end_headers()


def other_authority(scene: Scene) -> Sequence[Try]:
    """A man in the middle: a certificate of his own authority, then one of the federation's for another host."""
    folder, server, tap = scene.stage.server.path / "middle", scene.stage.server, scene.stage.tap
    folder.mkdir()
    make_authority(folder / "ca.crt", folder / "ca.key")
    issue("127.0.0.1", folder / "ca.crt", folder / "ca.key", folder / "his.crt", folder / "his.key")
    issue("another.example.org", server.ca, server.path / "ca.key", folder / "other.crt", folder / "other.key")
    tries = []
    for words, name in (("his own authority's certificate", "his"), ("the authority's, for another host", "other")):
        tap.show(folder / f"{name}.crt", folder / f"{name}.key")
        time.sleep(0.5)
        said, hands = len(tap.calls), tap.refused_hands
        scene.stage.until(lambda hands=hands: tap.refused_hands >= hands + 2, "two handshakes")
        got = "hung up, said nothing" if len(tap.calls) == said else f"said {len(tap.calls) - said} things"
        tap.show(server.certificate, server.key)
        scene.stage.until(lambda said=said: len(tap.calls) > said + 2, "the hospital to come back")
        tries.append(Try(words, "hung up, said nothing", got, "server_untrusted"))
    return tries


def stranger(scene: Scene) -> Sequence[Try]:
    """Somebody whose key is not registered, or who has only the public half of a registered one; at the real server."""
    folder, server = scene.stage.server.path / "stranger", scene.stage.server
    folder.mkdir()
    make_key(folder / "node.key", folder / "node.pub")
    key = read_private(folder / "node.key")
    line = FleetLine(f"127.0.0.1:{scene.stage.port}", server.ca, key)
    tries = [Try("join with an unregistered key", "HTTP 412", _status(line.activate))]
    line._node.node_id = scene.operator.node(VICTIM)
    tries += [Try(f"{name} with it, as the hospital", "HTTP 401", _status(call)) for name, call in (
        ("ask for messages", line.next), ("beat", line.beat), ("leave", line.deactivate))]  # fmt: skip
    with httpx.Client(verify=ssl.create_default_context(cafile=str(server.ca))) as bare:
        found = bare.post(f"https://127.0.0.1:{scene.stage.port}/v1/fleet/pull-messages", headers={
            "content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE})  # fmt: skip
    tries.append(Try("ask without any key", "HTTP 401", f"HTTP {found.status_code}"))
    named = [event for event in audit_log.read(server.path / "audit.jsonl") if event.get("key") == fingerprint(public_text(key))]
    line.close()
    return [*tries, Try("(the server's own log of that key)", "refused", ", ".join(event["event"] for event in named))]


def _status(call: Callable[[], object]) -> str:
    try:
        return f"answered {call()!r}"
    except LinkRefused as refused:
        return f"HTTP {refused.status}"
    except (LinkUntrusted, FedimagingError) as error:
        return type(error).__name__


def forged_reply(scene: Scene) -> Sequence[Try]:
    """Another hospital of the federation answers in the attacked one's name."""
    stage, operator = scene.stage, scene.operator
    liar = FleetLine(f"127.0.0.1:{stage.port}", stage.server.ca, read_private(stage.folder / LIAR / "keys" / "node.key"))
    liar.activate()
    mine, victim = operator.node(LIAR), operator.node(VICTIM)
    forged = wire.write_update(SiteUpdate(VICTIM, 1, np.zeros(4, np.float32)))
    question = Message(wire.write_enrolment(stage.study.fingerprint), victim, "query", ttl=300.0)
    with speaking(scene, "pull-messages", lambda line: line.answer(200, b"", content_type=PROTOBUF_MEDIA_TYPE)):
        asked = operator.line.push([question])[0]
        question.metadata.__dict__["_message_id"] = asked
        outcomes = []
        for source in (mine, victim):
            reply = Message(forged, reply_to=question)
            reply.metadata.__dict__["_src_node_id"] = source
            outcomes.append(_status(lambda reply=reply: liar.reply(reply, 0.0)))  # type: ignore[misc]
        early = [reply for reply in operator.line.replies([asked]) if not reply.from_server]
    own = operator.answer_to(asked)
    if own.source == SUPERLINK_NODE_ID:  # the hospital joined anew meanwhile, whereby Flower loses a message
        own = operator.ask(victim, ("query", wire.write_enrolment(stage.study.fingerprint)))[0]
    tries = [
        Try("a reply to the hospital's message, from the liar's node and from the hospital's", "none arrived",
            "none arrived" if not early else f"{len(early)} arrived"),
        Try("(what the liar was told)", "answered None, HTTP 403", ", ".join(outcomes)),
        Try("(the hospital's own answer then)", f"site from {victim}", f"{own.text} from {own.source}"),
        Try("the liar's own answer, signed with the hospital's name", "bad_message", _named_falsely(scene, liar, mine, forged)),
    ]  # fmt: skip
    liar.deactivate()
    liar.close()
    return tries


def _named_falsely(scene: Scene, liar: FleetLine, node: int, forged: object) -> str:
    told = TrainInstruction(scene.stage.study.fingerprint, 1, np.zeros(4, np.float32))
    (asked,) = scene.operator.line.push([Message(wire.write_instruction(told), node, "train", ttl=300.0)])
    envelope = liar.next()
    if envelope is None:
        return "the liar got no message"
    liar.reply(Message(forged, reply_to=envelope.head), 0.0)  # type: ignore[call-overload]
    for _ in range(100):
        for reply in scene.operator.line.replies([asked]):
            try:
                return f"believed as {checked_update(scene.operator.line.fetch(reply, 2**20), LIAR, told).site}"
            except SiteRefusal as refusal:
                return refusal.code
        threading.Event().wait(0.1)
    return "no answer"


ATTACKS = (
    Attack("10 GB in a message", ten_gigabytes), Attack("10 GB in place of an answer", endless_answers),
    Attack("answers that are none", no_answers), Attack("server with another certificate", other_authority),
    Attack("node key not registered", stranger), Attack("forged reply", forged_reply),
)
