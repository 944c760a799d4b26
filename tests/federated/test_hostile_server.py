"""A hospital's line and runner against a server that means harm: nothing that it answers ends the process, fills the memory or
is obeyed."""

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.app import Message
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse, PushMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.supercore.constant import FLWR_PACKAGE_VERSION_METADATA_KEY
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.runtime_version_compatibility import get_runtime_version_incompatibility_exit_message

from fedimaging.errors import LinkDown, LinkRefused, SiteRefusal
from fedimaging.federated import flower_http, flower_internals, site_runner, wire
from fedimaging.federated.client_app import build_client_app
from fedimaging.federated.flower_http import LARGEST_HEADS, FleetLine
from fedimaging.federated.flower_internals import MessageTooLarge, take_server_identity
from fedimaging.federated.site_runner import Joining, Work, run_site
from fedimaging.keys import make_key
from fedimaging.site.site import TrainInstruction

Answer = Callable[[httpx.Request], httpx.Response]


def posted(size: int) -> flower_internals.Written:
    take_server_identity(5)
    told = TrainInstruction("e" * 64, 1, np.arange(size, dtype=np.float32))
    return flower_internals.written(Message(wire.write_instruction(told), 7, "train", ttl=60.0))


def line(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> FleetLine:
    monkeypatch.setattr(flower_http, "_over_tls", lambda _: httpx.Client(transport=httpx.MockTransport(answer)))
    return FleetLine("server:1", Path("ca"), generate_private_key(SECP384R1()))


def test_of_a_list_of_messages_only_so_much_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def body() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 2**20
            yield b"\x12\x00" * 2**19

    hospital = line(lambda _: httpx.Response(200, content=body()), monkeypatch)
    with pytest.raises(LinkDown, match="no answer"):
        hospital.next()
    assert taken <= LARGEST_HEADS + 2**20


def test_of_many_messages_at_once_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    one = posted(4)
    many = PullMessagesResponse(messages_list=[one.head] * 3, message_object_trees=[one.tree] * 2)
    envelope = line(lambda _: httpx.Response(200, content=many.SerializeToString()), monkeypatch).next()
    assert envelope is not None
    assert envelope.id == one.head.metadata.message_id


def test_a_servers_cookies_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers)
        return httpx.Response(200, headers={"set-cookie": "track=1; Path=/"})

    hospital = line(answer, monkeypatch)
    hospital.next()
    hospital.next()
    assert len(sent) == 2
    assert not any("cookie" in headers for headers in sent)


@pytest.mark.parametrize("call", ["activate", "deactivate", "beat", "next"])
def test_nonsense_is_as_good_as_no_answer(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = line(lambda _: httpx.Response(200, content=b"\xff\xff\xff"), monkeypatch)
    with pytest.raises(LinkDown, match="no answer"):
        getattr(hospital, call)()


@pytest.mark.parametrize(("times", "fits"), [(1, True), (2, True), (3, False), (100_000, False)])
def test_a_chunk_listed_many_times_is_counted_before_it_is_unfolded(times: int, fits: bool) -> None:
    one = posted(300_000)
    contents = {key: part.deflate() for key, part in one.parts.items()}
    (envelope,) = flower_internals.envelopes([one.head], [one.tree])
    key = next(key for key, content in contents.items() if content.startswith(b"Array "))
    contents[key] = contents[key].replace(b": [0]", b": [" + b",".join([b"0"] * times) + b"]")
    if fits:
        assert flower_internals._put_together(envelope, contents, 2_500_000).has_content()
        return
    with pytest.raises(MessageTooLarge, match="unfold"):
        flower_internals._put_together(envelope, contents, 2_500_000)


def test_no_text_of_a_servers_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    error = FlowerError(ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE, "install another version")
    text = json.dumps(error.to_json("install another version"))
    assert get_runtime_version_incompatibility_exit_message(text) == "install another version"  # which ends Flower's own node
    sent: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers)
        return httpx.Response(400, text=text)

    with pytest.raises(LinkRefused, match="install another version"):
        line(answer, monkeypatch).next()
    assert sent[0][FLWR_PACKAGE_VERSION_METADATA_KEY] == version("flwr")


class Hostile:
    """Answers every call, mostly wrong: other statuses, random bytes, changed messages and parts of messages."""

    def __init__(self, seed: int, stop: threading.Event, calls: int) -> None:
        self._draw, self._stop, self._left = random.Random(seed), stop, calls
        self._posts = [posted(4), posted(300_000)]
        self._parts = {key: part.deflate() for key, part in self._posts[1].parts.items()}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self._left -= 1
        if self._left < 0:
            self._stop.set()
            return httpx.Response(503)
        draw = self._draw
        if draw.random() < 0.04:
            date = draw.choice(["x", "", "Mon, 23 Nov 2020 10:00:00 -0000", "Mon, 23 Nov 9999 10:00:00 GMT"])
            status = draw.choice([204, 301, 400, 401, 403, 404, 412, 418, 500, 503, 999])
            return httpx.Response(status, content=b"\xff\x00", headers={"date": date})
        if draw.random() < 0.02:
            return httpx.Response(200, content=draw.randbytes(draw.randint(0, 50)))
        return httpx.Response(200, content=self._body(request.url.path.rsplit("/", 1)[1]))

    def _body(self, call: str) -> bytes:
        if call == "activate-node":
            return ActivateNodeResponse(node_id=self._draw.choice([0, 7, 2**63 + 5])).SerializeToString()
        if call == "send-node-heartbeat":
            return SendNodeHeartbeatResponse(success=True).SerializeToString()
        if call == "push-messages":
            return PushMessagesResponse(objects_to_push=["x"], session_id="\x00").SerializeToString()
        if call == "pull-object":
            content = self._draw.choice(list(self._parts.values()))
            return PullObjectResponse(
                object_found=True, object_available=True, object_content=self._flipped(content[:5000])).SerializeToString()
        return self._messages() if call == "pull-messages" else b""

    def _messages(self) -> bytes:
        post = self._draw.choice(self._posts)
        head = type(post.head)()
        head.CopyFrom(post.head)
        name = self._draw.choice(["message_type", "message_id", "reply_to_message_id", "group_id", "ttl", "created_at"])
        value = self._draw.choice([float("nan"), float("inf"), -1.0, 1e308]) if name in ("ttl", "created_at") else (
            self._draw.choice(["", "system", "query.run_code", "\x00", "../..", "train" * 1000]))  # fmt: skip
        setattr(head.metadata, name, value)
        if self._draw.random() < 0.1:
            head.ClearField(self._draw.choice(["content", "metadata"]))
        if self._draw.random() < 0.1:
            head.error.code = 3
        tree = self._draw.choice([post.tree, ObjectTree()])
        whole = PullMessagesResponse(messages_list=[head], message_object_trees=[tree]).SerializeToString()
        return self._flipped(whole) if self._draw.random() < 0.3 else whole

    def _flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._draw.randint(0, 5)):
            changed[self._draw.randrange(len(changed))] = self._draw.randrange(256)
        return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_server_answers_the_runner_goes_on_until_it_is_stopped(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, codes, asked = threading.Event(), list[str](), hashlib.sha256()
    hostile = Hostile(seed, stop, 1500)
    monkeypatch.setattr(flower_http, "_over_tls", lambda _: httpx.Client(transport=httpx.MockTransport(hostile)))
    monkeypatch.setattr(site_runner, "pace", lambda *_, **__: 0.0)
    make_key(tmp_path / "node.key", tmp_path / "node.pub")

    def nobody(_: object, study: str) -> None:
        asked.update(study.encode())
        raise SiteRefusal("study_not_approved")

    work = Work(build_client_app(nobody, codes.append), lambda: 4 * 300_000 + 2**20, codes.append, lambda text: None)  # type: ignore[arg-type]
    run_site(Joining("north", "server:1", Path("ca"), tmp_path / "node.key"), work, stop)
    assert stop.is_set()
    assert {"bad_message"} <= set(codes) <= set(wire.REFUSALS)
