import asyncio
import contextlib
import logging
import os
import socket
import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.node_pb2 import Node

from fedimaging.errors import RunError
from fedimaging.federated import superlink
from fedimaging.federated.superlink import LARGEST_REQUEST, Listeners, fleet_only
from fedimaging.keys import fingerprint, make_key


async def _application(scope: Any, receive: Any, send: Any) -> None:
    """Flower's place: reads the whole body and says how long it was; 499 where the sender hung up."""
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await send({"type": "http.response.start", "status": 499, "headers": []})
            break
        length += len(message["body"])
        if not message.get("more_body"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            break
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(path: str, method: str = "POST", parts: Iterable[bytes] = (b"x",), length: str | None = None, kind: str = "http") -> int:
    """The status that a stranger gets."""
    body = list(parts)
    queue = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    queue.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return queue.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if length is None else [(b"content-length", length.encode())]
    asyncio.run(fleet_only(_application)({"type": kind, "path": path, "method": method, "headers": headers}, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("name", [
    "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "pull-object", "push-object",
    "confirm-message-received",
])
def test_a_hospitals_calls_pass(name: str) -> None:
    assert ask(f"/v1/fleet/{name}", parts=[] if name == "push-messages" else [b"x"]) == 200


@pytest.mark.parametrize(("senders", "status"), [((7,), 200), ((7, 7), 200), ((8,), 403), ((7, 8), 403), ((0,), 403)])
def test_a_hospital_posts_its_own_messages_and_nobody_elses(senders: tuple[int, ...], status: int) -> None:
    posted = PushMessagesRequest(node=Node(node_id=7))
    for sender in senders:
        posted.messages_list.add().metadata.src_node_id = sender
    body = posted.SerializeToString()
    assert ask("/v1/fleet/push-messages", parts=[body[:5], body[5:]]) == status


def test_what_is_no_post_is_not_passed_on() -> None:
    assert ask("/v1/fleet/push-messages", parts=[b"\xff\xff\xff"]) == 403
    part = b"x" * LARGEST_REQUEST
    assert ask("/v1/fleet/push-messages", parts=[part, b"x"]) == 403


@pytest.mark.parametrize("path", [
    "/", "/health", "/docs", "/openapi.json", "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task",
    "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-fab", "/v1/fleet/get-run", "/v1/fleet/",
    "/v1/fleet/../control/start-run", "//v1/fleet/pull-messages", "/v1/fleet/pull-messages/", "/V1/fleet/pull-messages",
])
def test_nothing_else_answers(path: str) -> None:
    assert ask(path) == 404


def test_neither_do_other_methods_and_protocols() -> None:
    assert ask("/v1/fleet/pull-messages", "GET") == 404
    assert ask("/v1/fleet/pull-messages", kind="websocket") == 404


@pytest.mark.parametrize("length", [str(LARGEST_REQUEST + 1), "9" * 30, "-1", "ten"])
def test_a_body_that_says_it_is_too_long_is_not_read(length: str) -> None:
    assert ask("/v1/fleet/push-object", length=length) == 413


def test_a_body_that_does_not_say_is_cut_off() -> None:
    part = b"x" * (LARGEST_REQUEST // 2)
    assert ask("/v1/fleet/push-object", parts=[part, part]) == 200
    assert ask("/v1/fleet/push-object", parts=[part, part, b"x"]) == 499


def test_a_key_that_is_not_let_in_is_named_once_by_its_fingerprint(tmp_path: Path) -> None:
    keys = [make_key(tmp_path / f"{k}.key", tmp_path / f"{k}.pub") for k in range(2)]
    noted: list[str] = []
    strangers = superlink.Strangers(noted.append)

    def said(text: str) -> str | None:
        record = logging.LogRecord("flwr", logging.ERROR, "", 1, text, (), None)
        return record.getMessage() if strangers.filter(record) else None

    for key in keys:
        text = said(f"[ApiError:2004] Attempted to register SuperNode with public key: {key.encode()!r}, exception: no")
        assert text is not None
        assert text.startswith(f"a node with the key {fingerprint(key)} was not let in")
    assert said(f"Attempted again: {keys[0].encode()!r}") is None
    assert said("something else") == "something else"
    late = said("Failed to store Message reply: The message it replies to with message_id 95be does not exist or has expired")
    assert late is not None
    assert late.startswith("a reply came too late, or twice")
    assert noted == [fingerprint(key) for key in keys]
    nonsense = said("-----BEGIN PUBLIC KEY-----%s-----END PUBLIC KEY-----")
    assert nonsense is not None
    assert "(unreadable)" in nonsense


def test_a_log_that_cannot_be_written_lets_the_server_go_on(tmp_path: Path) -> None:
    def full(_: str) -> None:
        raise RunError("no space left")

    key = make_key(tmp_path / "k.key", tmp_path / "k.pub")
    record = logging.LogRecord("flwr", logging.ERROR, "", 1, f"public key: {key.encode()!r}", (), None)
    assert superlink.Strangers(full).filter(record)


def test_a_new_database_is_this_users_with_large_pages_and_an_old_one_is_left_alone(tmp_path: Path) -> None:
    for name in ("new.db", "old.db"):
        if name == "old.db":
            with contextlib.closing(sqlite3.connect(tmp_path / name)) as made:
                made.execute("CREATE TABLE kept (x)")
        superlink._prepare(tmp_path / name)
    with contextlib.closing(sqlite3.connect(tmp_path / "new.db")) as found:
        assert found.execute("PRAGMA page_size").fetchone() == (65536,)
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as found:
        assert found.execute("PRAGMA page_size").fetchone() == (4096,)
        assert found.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    assert stat.S_IMODE((tmp_path / "new.db").stat().st_mode) == 0o600


def test_the_operators_socket_is_for_this_user_only_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("left behind by a kill")
    before = os.umask(0)
    try:
        with superlink._private_socket(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_ISSOCK(path.stat().st_mode)
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_folder_too_deep_for_a_socket_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="too long"), superlink._private_socket(tmp_path / ("x" * 100) / "api.sock"):
        pass


def test_a_port_in_use_is_said_and_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    listeners = Listeners(tmp_path / "s", "127.0.0.1", 0, tmp_path / "c", tmp_path / "k")
    with superlink._public_socket(listeners) as first:
        assert first.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        first.listen()
        taken = Listeners(tmp_path / "s", "127.0.0.1", first.getsockname()[1], tmp_path / "c", tmp_path / "k")
        with pytest.raises(RunError, match="cannot listen"), superlink._public_socket(taken):
            pass
