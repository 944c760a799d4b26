"""The server's process: Flower's SuperLink behind two listeners of ours.

The public one, over TLS, answers the calls that a hospital makes and nothing else: from outside, no run can be started,
no key registered and no task taken. Everything is reachable only through a Unix socket in the server's own folder, which
no other user of the machine can open (Flower has no authentication there).
"""

import asyncio
import contextlib
import logging
import math
import os
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedimaging.errors import RunError
from fedimaging.federated.flower_internals import of_its_own, superlink_app
from fedimaging.keys import fingerprint

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSPITALS_CALLS = frozenset(f"/v1/fleet/{name}" for name in (
    "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "pull-object",
    "push-object", "confirm-message-received",
))
"""All that the public listener answers. Not get-run and get-fab: no hospital of ours asks for code or run options."""

LARGEST_REQUEST = 16 * 2**20
"""Bytes of one request from a hospital; Flower cuts arrays into objects of 5 MiB."""

_POSTS = "/v1/fleet/push-messages"
_CALLS_AT_ONCE = 4  # SQLite has one writer, and those who wait for it sleep: measured best of 1, 4 and 40 on two cores
_PAGE_BYTES = 65536
_IDLE_SECONDS = 75  # hospitals ask every few seconds; a new TLS handshake each time would cost more than the question
_PUBLIC_KEY = re.compile(r"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.S)
_TELL_AGAIN_SECONDS, _MOST_STRANGERS = 600.0, 1000
_LATE_REPLY = "Failed to store Message reply"
_LONGEST_SOCKET_PATH = 100  # bytes; Linux has room for 107


@dataclass(frozen=True)
class Listeners:
    """Where the server listens. `socket`: the operator's Unix socket; the rest is public."""

    socket: Path
    address: str
    port: int
    certificate: Path
    key: Path


def serve(
    listeners: Listeners, database: Path, secret: bytes, on_ready: Callable[[], None], on_stranger: Callable[[str], None]
) -> None:
    """Run the server until SIGTERM or SIGINT. Error: RunError where it cannot listen.

    `on_ready` is called once both listeners answer; `on_stranger` with the fingerprint of a key that was not let in. A kill
    loses nothing: hospitals and runs reconnect.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("flwr").addFilter(Strangers(on_stranger))
    _prepare(database)
    with _private_socket(listeners.socket) as private, _public_socket(listeners) as public:
        asyncio.run(_serve(superlink_app(database, secret), listeners, private, public, on_ready))


def _prepare(database: Path) -> None:
    """Make a new database ready for large objects before Flower fills it: with pages of 64 KiB in place of SQLite's 4 KiB
    a round with 30 MB of weights takes a sixth less of the processor's time."""
    if not database.exists():
        with contextlib.closing(sqlite3.connect(database)) as made:
            made.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            made.execute("VACUUM")
        database.chmod(0o600)


async def _serve(
    app: "ASGIApp", listeners: Listeners, private: socket.socket, public: socket.socket, on_ready: Callable[[], None]
) -> None:
    import anyio.to_thread
    import uvicorn

    class Listener(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # two servers in one process: signals are ours

    anyio.to_thread.current_default_thread_limiter().total_tokens = _CALLS_AT_ONCE
    config = partial(
        uvicorn.Config, log_level="warning", access_log=False, timeout_keep_alive=_IDLE_SECONDS, timeout_graceful_shutdown=3,
        ws="none")  # a websocket is a GET, which is answered by 404
    whole = Listener(config(app))
    fleet = Listener(config(
        fleet_only(app), lifespan="off", ssl_certfile=str(listeners.certificate), ssl_keyfile=str(listeners.key)))

    def stop() -> None:
        whole.should_exit = fleet.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)

    async def announce() -> None:
        while not (whole.started and fleet.started) and not whole.should_exit:
            await asyncio.sleep(0.02)
        if not whole.should_exit:
            await asyncio.to_thread(on_ready)

    await asyncio.gather(whole.serve(sockets=[private]), fleet.serve(sockets=[public]), announce())


class Strangers(logging.Filter):
    """Flower's complaint about a key that it did not let in, in our words and with the key's fingerprint; once in ten
    minutes for each, because a hospital that waits to be admitted tries again for ever. A reply that comes late, which is no
    fault where networks break, is told in our words too."""

    def __init__(self, on_stranger: Callable[[str], None]) -> None:
        super().__init__()
        self._told: dict[str, float] = {}
        self._on_stranger = on_stranger

    def filter(self, record: logging.LogRecord) -> bool:
        """False for what was said already."""
        if record.getMessage().startswith(_LATE_REPLY):
            record.args = ()
            record.msg = "a reply came too late, or twice, and was dropped; a round that waits for it asks the hospital again."
        key = _PUBLIC_KEY.search(record.getMessage())
        if key is None:
            return True
        name = _name_of(key[0].replace("\\n", "\n"))
        if time.monotonic() - self._told.get(name, -math.inf) < _TELL_AGAIN_SECONDS:
            return False
        if len(self._told) >= _MOST_STRANGERS:  # anybody can make keys
            self._told.clear()
        self._told[name] = time.monotonic()
        with contextlib.suppress(RunError):  # the disk of the server's log is full: hospitals go on all the same
            self._on_stranger(name)
        record.msg, record.args = (
            "a node with the key %s was not let in: it is not registered (fedimaging server add-site), or it joined from two "
            "places, or again within 20 seconds of a crash.", (name,))
        return True


def _name_of(key: str) -> str:
    try:
        return fingerprint(key)
    except ValueError:
        return "(unreadable)"


def fleet_only(app: "ASGIApp") -> "ASGIApp":
    """`app` for strangers: 404 for all but a hospital's calls, 413 for a body above LARGEST_REQUEST, 403 for messages that
    are not the hospital's own."""

    async def guarded(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or scope["path"] not in HOSPITALS_CALLS or scope["method"] != "POST":
            await _answer(send, 404)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > LARGEST_REQUEST:
            await _answer(send, 413)
            return
        body = _bounded(receive)
        if scope["path"] == _POSTS:
            whole = await _whole(body)
            if whole is None or not of_its_own(whole):
                await _answer(send, 403)
                return
            body = _again(whole, body)
        await app(scope, body, send)

    return guarded


async def _whole(receive: "Receive") -> bytes | None:
    """A request's body; None where its sender hung up."""
    read = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        read += message.get("body", b"")
        if not message.get("more_body"):
            return read


def _again(body: bytes, after: "Receive") -> "Receive":
    """A body that was read already, for the application to read, and then whatever follows."""
    waiting = [body]

    async def part() -> "Message":
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await after()

    return part


def _bounded(receive: "Receive") -> "Receive":
    """A body that does not say how long it is ends, for the application, as if its sender had hung up."""
    read = 0

    async def part() -> "Message":
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return message if read <= LARGEST_REQUEST else {"type": "http.disconnect"}

    return part


async def _answer(send: "Send", status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def _private_socket(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket that only this user can open; what a killed server left behind is replaced."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise RunError(f"the path {str(path)!r} is too long for a Unix socket; move the server's folder to a shorter one.")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        except OSError as error:
            raise RunError(f"cannot make the socket {str(path)!r}: {error.strerror}.") from None
        finally:
            os.umask(before)
        yield listening
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _public_socket(listeners: Listeners) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in listeners.address else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Without this every answer waits 40 ms for the other side's delayed acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listening.bind((listeners.address, listeners.port))
        except OSError as error:
            where = f"{listeners.address}:{listeners.port}"
            raise RunError(f"cannot listen on {where}: {error.strerror}; choose another port or address.") from None
        yield listening
