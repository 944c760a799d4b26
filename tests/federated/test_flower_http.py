"""What we rely on of Flower's private parts, against Flower's own server in this process. A new flwr that breaks any of it
fails here first."""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedimaging.errors import LinkCut, LinkDown, LinkRefused, LinkUntrusted, RunError
from fedimaging.federated import flower_http, flower_internals, flower_requests
from fedimaging.federated.deployed_grid import thin_fab
from fedimaging.federated.flower_http import HEARTBEAT_SECONDS, ControlLine, FleetLine, RunLine, acquire_run
from fedimaging.federated.flower_internals import MessageGone, MessageTooLarge, superlink_app
from fedimaging.federated.timing import Heartbeat
from fedimaging.keys import public_text

from .in_loop import InLoop

SECRET = b"known to the server's own processes"
SOCKET = Path("unused")


@pytest.fixture(scope="module")
def transport(tmp_path_factory: pytest.TempPathFactory) -> InLoop:
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Flower's own database migrations
        return InLoop(superlink_app(tmp_path_factory.mktemp("superlink") / "state.db", SECRET))


@pytest.fixture
def server(transport: InLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are opened now lead to Flower's server in this process."""

    def connect(_: Path) -> httpx.Client:
        return httpx.Client(transport=transport)

    monkeypatch.setattr(flower_http, "_over_socket", connect)
    monkeypatch.setattr(flower_http, "_over_tls", connect)


def registered(name: str = "h") -> EllipticCurvePrivateKey:
    key = generate_private_key(SECP384R1())
    ControlLine(SOCKET).register(public_text(key).encode(), name)
    return key


def joined(key: EllipticCurvePrivateKey | None = None) -> FleetLine:
    line = FleetLine("server:1", SOCKET, key or registered())
    line.activate()
    return line


@pytest.fixture
def run(server: None) -> Iterator[tuple[RunLine, int]]:
    control = ControlLine(SOCKET)
    run_id = control.start_run(*thin_fab())
    claimed = acquire_run(SOCKET, SECRET)
    assert claimed is not None
    assert claimed[0] == run_id
    line = RunLine(SOCKET, claimed[1])
    line.begin()
    with Heartbeat(line.beat, HEARTBEAT_SECONDS):  # a silent run is ended by the server, on a slow machine within a test
        yield line, run_id
    control.stop_run(run_id)


def question(node: int, size: int = 4) -> Message:
    weights = np.random.default_rng(size).random(size, dtype=np.float32)
    return Message(RecordDict({
        "instruction": ConfigRecord({"study": "x", "round": 1}), "weights": ArrayRecord({"weights": Array(weights)}),
    }), node, "train", ttl=60.0)  # fmt: skip


def answer(message: Message, value: float = 1.0) -> Message:
    array = message.content.array_records["weights"]["weights"].numpy() + np.float32(value)
    return Message(RecordDict({"update": ArrayRecord({"update": Array(array)})}), reply_to=message)


def only_node(line: RunLine, hospital: FleetLine) -> int:
    ids = {node.node_id for node in line.nodes()}
    assert hospital._node.node_id in ids
    return hospital._node.node_id


@pytest.mark.parametrize("size", [4, 300_000], ids=["in one piece", "as objects"])
def test_a_message_goes_there_and_back(size: int, run: tuple[RunLine, int]) -> None:
    line, hospital = run[0], joined()
    sent = question(only_node(line, hospital), size)
    (message_id,) = line.push([sent])
    envelope = hospital.next()
    assert envelope is not None
    assert envelope.id == message_id
    assert bool(envelope.objects) == (size > 4)
    assert hospital.next() is None  # handed out once
    message = hospital.fetch(envelope, 16 * 2**20)
    np.testing.assert_array_equal(
        message.content.array_records["weights"]["weights"].numpy(), sent.content.array_records["weights"]["weights"].numpy())
    assert line.replies([message_id]) == []
    hospital.reply(answer(message), 0.5)
    (reply,) = line.replies([message_id])
    assert not reply.from_server
    assert reply.head.metadata.src_node_id == hospital._node.node_id
    back = line.fetch(reply, 16 * 2**20)
    expected = sent.content.array_records["weights"]["weights"].numpy() + np.float32(1)
    np.testing.assert_array_equal(back.content.array_records["update"]["update"].numpy(), expected)
    assert line.replies([message_id])[0].from_server  # each reply comes once; after that the message is not known
    hospital.deactivate()


def test_messages_that_share_content_share_its_objects(run: tuple[RunLine, int], monkeypatch: pytest.MonkeyPatch) -> None:
    line, hospitals = run[0], [joined(), joined()]
    pushed: list[int] = []
    original = line._client.PushObject
    monkeypatch.setattr(line._client, "PushObject", lambda r: (pushed.append(len(r.object_content)), original(r))[1])
    content = question(1, 300_000).content
    line.push([Message(content, hospital._node.node_id, "train") for hospital in hospitals])
    assert sum(pushed) < 1.1 * 1_200_000
    for hospital in hospitals:
        envelope = hospital.next()
        assert envelope is not None
        assert hospital.fetch(envelope, 16 * 2**20).content.array_records["weights"]["weights"].shape == (300_000,)
        hospital.deactivate()


@pytest.mark.parametrize("size", [100_000, 300_000], ids=["in one piece", "as objects"])
def test_a_message_above_the_limit_is_refused_before_it_is_read(
    size: int, run: tuple[RunLine, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, hospital = run[0], joined()
    line.push([question(hospital._node.node_id, size)])
    envelope = hospital.next()
    assert envelope is not None
    pulled: list[int] = []
    original = hospital._client.PullObject
    monkeypatch.setattr(hospital._client, "PullObject", lambda request: (pulled.append(1), original(request))[1])
    with pytest.raises(MessageTooLarge):
        hospital.fetch(envelope, 2 * size)
    assert len(pulled) <= 4  # two at a time, and none after the limit was passed
    hospital.deactivate()


def test_so_many_objects_that_they_cannot_be_of_an_allowed_message_are_not_pulled(run: tuple[RunLine, int]) -> None:
    hospital = joined()
    run[0].push([question(hospital._node.node_id)])
    envelope = hospital.next()
    assert envelope is not None
    flood = flower_internals.Envelope(envelope.head, 100, tuple(str(k) for k in range(70)))
    with pytest.raises(MessageTooLarge):
        hospital.fetch(flood, 1000)
    hospital.deactivate()


def test_parts_that_never_came_are_told_from_those_that_are_gone(run: tuple[RunLine, int]) -> None:
    line, hospital = run[0], joined()
    sent = question(hospital._node.node_id, 300_000)
    posted = flower_internals.written(sent)
    request = flower_http.PushAppMessagesRequest(messages_list=[posted.head], message_object_trees=[posted.tree])
    line._client.PushMessages(request)  # the head, and none of its parts
    envelope = hospital.next()
    assert envelope is not None
    with pytest.raises(LinkDown, match="on its way"):
        hospital.fetch(envelope, 16 * 2**20, wait_seconds=0.0)
    envelope.head.metadata.__dict__["_message_id"] = "f" * 64  # as if the server had forgotten the message meanwhile
    with pytest.raises(MessageGone):
        hospital.fetch(envelope, 16 * 2**20)
    hospital.deactivate()


def test_a_part_that_the_server_forgot_is_gone_at_once(run: tuple[RunLine, int]) -> None:
    line, hospital = run[0], joined()
    line.push([question(hospital._node.node_id, 300_000)])
    envelope = hospital.next()
    assert envelope is not None
    with pytest.raises(MessageGone):
        hospital.fetch(replace(envelope, objects=(*envelope.objects, "f" * 64)), 16 * 2**20)
    hospital.deactivate()


def test_only_registered_keys_join_and_only_one_process_with_each(server: None) -> None:
    with pytest.raises(LinkRefused) as stranger:
        FleetLine("server:1", SOCKET, generate_private_key(SECP384R1())).activate()
    key = registered()
    first, second = joined(key), FleetLine("server:1", SOCKET, key)
    with pytest.raises(LinkRefused) as double:
        second.activate()
    assert stranger.value.status == double.value.status == 412
    first.deactivate()
    second.activate()  # a hospital that left need not wait
    assert second.beat()


def test_a_node_cannot_speak_with_anothers_id(server: None) -> None:
    mine, other = joined(), joined()
    mine._node = other._node
    for call in (mine.next, mine.beat, mine.deactivate):
        with pytest.raises(LinkRefused) as refused:
            call()
        assert refused.value.status == 401


def test_a_node_cannot_answer_for_another(run: tuple[RunLine, int]) -> None:
    line, asked, liar = run[0], joined(), joined()
    (message_id,) = line.push([question(asked._node.node_id)])
    envelope = asked.next()
    assert envelope is not None
    forged = answer(envelope.head)
    forged.metadata.__dict__["_src_node_id"] = liar._node.node_id
    liar.reply(forged, 0.0)
    assert line.replies([message_id]) == []
    asked.deactivate()
    liar.deactivate()


def test_a_hospital_that_is_shut_out_is_not_known_any_more(server: None) -> None:
    key = registered("to go")
    line, control = joined(key), ControlLine(SOCKET)
    mine = next(node for node in control.nodes() if node.public_key.decode() == public_text(key))
    assert mine.online
    assert mine.activated
    control.unregister(mine.node_id)
    assert mine.node_id not in {node.node_id for node in control.nodes()}
    with pytest.raises(LinkRefused):
        line.beat()
    with pytest.raises(LinkRefused):
        control.register(public_text(key).encode(), "again")


def test_a_hospital_that_leaves_with_a_message_is_told_of_and_its_next_session_is_another(run: tuple[RunLine, int]) -> None:
    line, key = run[0], registered()
    hospital = joined(key)
    before = {node.node_id: node.activated for node in line.nodes()}
    (message_id,) = line.push([question(hospital._node.node_id)])
    assert hospital.next() is not None
    hospital.deactivate()
    (lost,) = line.replies([message_id])
    assert lost.from_server
    again = joined(key)
    after = {node.node_id: node.activated for node in line.nodes()}
    assert after[again._node.node_id] != before[again._node.node_id]
    again.deactivate()


def test_a_run_is_claimed_only_with_the_secret_and_only_once(server: None) -> None:
    control = ControlLine(SOCKET)
    run_id = control.start_run(*thin_fab())
    with pytest.raises(LinkRefused):
        acquire_run(SOCKET, b"guessed")
    claimed = acquire_run(SOCKET, SECRET)
    assert claimed is not None
    assert claimed[0] == run_id
    assert acquire_run(SOCKET, SECRET) is None
    control.stop_run(run_id)
    with pytest.raises(LinkRefused):
        control.stop_run(run_id)
    with pytest.raises(LinkRefused):
        RunLine(SOCKET, claimed[1]).beat()


def test_a_reply_to_a_run_that_has_ended_is_refused(server: None) -> None:
    control = ControlLine(SOCKET)
    run_id = control.start_run(*thin_fab())
    claimed = acquire_run(SOCKET, SECRET)
    assert claimed is not None
    line, hospital = RunLine(SOCKET, claimed[1]), joined()
    line.begin()
    assert line.beat()
    line.push([question(hospital._node.node_id)])
    envelope = hospital.next()
    assert envelope is not None
    control.stop_run(run_id)
    with pytest.raises(LinkRefused):
        hospital.reply(answer(envelope.head), 0.0)
    hospital.deactivate()


def test_the_servers_metadata_count_and_not_what_a_message_says_inside() -> None:
    flower_internals.take_server_identity(7)
    sent = question(5, 300_000)
    posted = flower_internals.written(sent)
    (envelope,) = flower_internals.envelopes([posted.head], [posted.tree])
    envelope.head.metadata.__dict__["_dst_node_id"] = 6
    contents = {key: part.deflate() for key, part in posted.parts.items()}
    message = flower_internals._put_together(envelope, contents, 2**21)
    assert message.metadata.dst_node_id == 6
    assert message.metadata.run_id == 7
    with pytest.raises(ValueError, match="no message"):
        flower_internals._put_together(envelope, {}, 2**21)


def canned(*responses: httpx.Response | Exception) -> httpx.Client:
    todo = iter(responses)

    def reply(_: httpx.Request) -> httpx.Response:
        response = next(todo)
        if isinstance(response, Exception):
            raise response
        return response

    return httpx.Client(transport=httpx.MockTransport(reply))


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), LinkDown, "refused"),
        (httpx.ReadTimeout(""), LinkCut, "ReadTimeout"), (httpx.ReadError("reset"), LinkCut, "reset"),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), LinkUntrusted, "not to be trusted"),
        (httpx.Response(503), LinkCut, "503"),
        (httpx.Response(302, headers={"location": "https://elsewhere"}), LinkRefused, "302"),
        (httpx.Response(401, text="no", headers={"date": "Mon, 23 Nov 2020 10:00:00 GMT"}), LinkRefused, "clock is .* off"),
        (httpx.Response(401, text="no"), LinkRefused, "HTTP 401.*no$"),
        (httpx.Response(200, content=iter([b"x" * flower_http.LARGEST_HEADS, b"x"])), LinkDown, "no answer: an answer"),
        (httpx.Response(200, content=iter([b"x"]), headers={"content-encoding": "gzip"}), LinkDown, "packed"),
        (httpx.Response(200, content=b"\xff\xff\xff"), LinkDown, "protobuf"),
        (httpx.Response(401, headers={"date": "Mon, 23 Nov 2020 10:00:00 -0000"}), LinkRefused, "HTTP 401"),
        (httpx.Response(401, content=b"a\r\n\x1b[31mb"), LinkRefused, "a   .31mb$"),
        (httpx.Response(401, content=b"no", headers={"content-type": "text/plain; charset=zlib_codec"}), LinkRefused, "no$"),
    ],
)
def test_what_a_hospital_makes_of_what_comes_back(
    response: httpx.Response | Exception, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_http, "_over_tls", lambda _: canned(response))
    with pytest.raises(error, match=words):
        FleetLine("server:1", SOCKET, generate_private_key(SECP384R1())).activate()


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("")])
def test_what_never_left_is_not_taken_for_lost(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_http, "_over_tls", lambda _: canned(error))
    with pytest.raises(LinkDown) as caught:
        FleetLine("server:1", SOCKET, generate_private_key(SECP384R1())).activate()
    assert not isinstance(caught.value, LinkCut)


@pytest.mark.parametrize(("seconds", "welcome"), [(140.0, True), (-140.0, True), (170.0, False), (-170.0, False)])
def test_a_hospitals_clock_may_be_off_by_two_and_a_half_minutes_either_way(
    seconds: float, welcome: bool, server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Off":
            return super().now(tz) + timedelta(seconds=seconds)

    line = FleetLine("server:1", SOCKET, registered())
    monkeypatch.setattr(flower_requests, "datetime", Off)
    if welcome:
        line.activate()
        assert line.beat()
        line.deactivate()
    else:
        with pytest.raises(LinkRefused) as refused:
            line.activate()
        assert refused.value.status == 401


def test_a_reply_by_a_clock_that_is_ahead_has_not_expired(run: tuple[RunLine, int]) -> None:
    line, hospital = run[0], joined()
    (message_id,) = line.push([question(hospital._node.node_id)])  # to be answered within a minute
    envelope = hospital.next()
    assert envelope is not None
    reply = answer(envelope.head)
    reply.metadata.created_at += 120
    reply.metadata.ttl -= 120
    hospital.reply(flower_internals.by_the_servers_clock(reply), 0.0)
    assert not line.replies([message_id])[0].from_server
    hospital.deactivate()


def test_a_message_is_there_though_the_server_did_not_hear_so(
    run: tuple[RunLine, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, hospital = run[0], joined()
    line.push([question(hospital._node.node_id, 300_000)])
    envelope = hospital.next()
    assert envelope is not None

    def lost(_: object) -> None:
        raise httpx.ReadTimeout("")

    monkeypatch.setattr(hospital._client, "ConfirmMessageReceived", lost)
    assert hospital.fetch(envelope, 16 * 2**20).content.array_records["weights"]["weights"].shape == (300_000,)
    hospital.deactivate()


def test_an_authority_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        FleetLine("server:1", tmp_path / "ca.crt", generate_private_key(SECP384R1()))
