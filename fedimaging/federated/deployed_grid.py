"""The carrier of a real federation: the same ServerApp, over the network, for hours, with hospitals that come and go.

Flower hands every message out once. A hospital that dies with it, or a network that breaks, would cost the round; so a
message is posted again whenever its hospital has joined anew, until the deadline. A hospital that has answered already
gives the same answer again, at no cost in privacy.
"""

import contextlib
import hashlib
import io
import math
import secrets
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedimaging.errors import LinkCut, LinkDown, LinkError, LinkRefused, RunError
from fedimaging.federated import flower_internals as flower
from fedimaging.federated import wire
from fedimaging.federated.flower_http import HEARTBEAT_SECONDS, ControlLine, NodeState, RunLine, acquire_run
from fedimaging.federated.timing import Heartbeat, pace
from fedimaging.files import held, write_text

_LONGEST_SECONDS = 30 * 86400.0  # without a deadline a message waits so long for its hospital
_LOOK_SECONDS = 1.0  # how often to look who has come back
_AT_ONCE = 8  # messages of one request: small content is inside them

T = TypeVar("T")


class RunLost(RunError):
    """The server gave this run up while it could not be reached; the study goes on with a new one."""


_COME_BACK = {"stopping": 0.0, "disk_full": 30.0, "outside_hours": 600.0}
"""Refusals that mean "later", and after how many seconds the same hospital is asked again, if the deadline allows."""


@dataclass
class _Errand:
    """One message to one hospital until its reply is there. `session`: to which of the node's sessions it went last;
    `not_before`: when it may be posted again; `put_off`: the newest code that means "later"."""

    message: Message
    posted: list[str] = field(default_factory=list)
    session: str = ""
    not_before: float = 0.0
    put_off: str = ""
    reply: flower.Envelope | None = None

    @property
    def node(self) -> int:
        return self.message.metadata.dst_node_id


class DeployedGrid(Grid):
    """A Grid over one run of the server's. Errors of its calls: RunLost; a server that is away is waited for.

    `largest_reply`: bytes; a larger one is an error reply of its hospital. `say(text)` tells the operator what is waited
    for, and for whom by `name_of(node)`.
    """

    def __init__(
        self, line: RunLine, run_id: int, largest_reply: int, say: Callable[[str], None],
        name_of: Callable[[int], str | None] = lambda node: None,
    ) -> None:
        self._line, self._run_id, self._largest, self._say, self._name_of = line, run_id, largest_reply, say, name_of
        self._cuts = 0  # how often an answer was cut off

    def set_run(self, run: object) -> None:
        """There is one run; nothing to set."""

    @property
    def run(self) -> flower.Run:
        """A record with the run's id."""
        return flower.empty_run(self._run_id)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """The nodes that are online."""
        return [node.node_id for node in self.online()]

    def online(self) -> list[NodeState]:
        """What the server knows of the nodes that are online."""
        return self._patiently(self._line.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Post messages once; their ids, in order."""
        posts = list(messages)
        return self._patiently(lambda: self._line.push(posts))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that have come."""
        ids = list(message_ids)
        found = self._patiently(lambda: self._line.replies(ids))
        return [self._patiently(partial(self._line.fetch, one, self._largest)) for one in found]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Lazily yield the replies in the order of the messages; one large reply at a time is in memory. A hospital that is
        away gets its message when it comes; after `timeout` seconds those that have not answered are left out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._replies([_Errand(message) for message in messages], deadline)

    def _replies(self, errands: list[_Errand], deadline: float | None) -> Iterator[Message]:
        began, looked = time.monotonic(), -math.inf
        while errands:
            late = deadline is not None and time.monotonic() >= deadline
            waiting = [errand for errand in errands if errand.reply is None]
            if waiting and not late and time.monotonic() - looked >= _LOOK_SECONDS:
                self._post(waiting, deadline)
                looked = time.monotonic()
            self._look(waiting)
            while errands and (errands[0].reply is not None or late):
                reply = self._taken(errands[0])
                if reply is None and not late:
                    break  # its objects are still on their way, or got lost
                errands.pop(0)
                if reply is not None:
                    yield reply
            if errands:
                time.sleep(pace(time.monotonic() - began, least=0.1, most=2.0))

    def _post(self, errands: list[_Errand], deadline: float | None) -> None:
        """Post to every hospital that is there and has joined since it was posted to last."""
        session = {node.node_id: node.activated for node in self.online()}
        now = time.monotonic()
        due = [e for e in errands if session.get(e.node, e.session) != e.session and now >= e.not_before]
        seconds = _LONGEST_SECONDS if deadline is None else max(1.0, deadline - now)
        for first in range(0, len(due), _AT_ONCE):
            group = due[first : first + _AT_ONCE]
            ids = self.push_messages([_copy(errand.message, seconds) for errand in group])
            for errand, message_id in zip(group, ids, strict=True):
                if errand.posted:
                    self._say(f"sent again to {self._name(errand)}: {errand.message.metadata.message_type}")
                if message_id:
                    errand.posted.append(message_id)
                    errand.session = session[errand.node]

    def _look(self, errands: list[_Errand]) -> None:
        """Note which replies have come; a message that got lost with its hospital is to be posted again."""
        owner = {message_id: errand for errand in errands for message_id in errand.posted}
        if not owner:
            return
        cuts = self._cuts
        envelopes = self._patiently(lambda: self._line.replies(owner))
        if self._cuts > cuts:  # the server hands a reply out once, and the answer that was cut off may have held some
            for waiting in errands:
                waiting.session = ""
        for envelope in envelopes:
            question = envelope.head.metadata.reply_to_message_id
            errand = owner.get(question)
            if errand is None:
                continue
            later = _COME_BACK.get(code := _code(envelope))
            if later is not None and code != errand.put_off:
                errand.put_off = code
                self._say(f"{self._name(errand)} says {code}; it is asked again later")
            if envelope.from_server or later is not None:
                errand.posted.remove(question)
                errand.session = errand.session if errand.posted or later == 0 else ""
                errand.not_before = time.monotonic() + (later or 0.0)
            elif errand.reply is None:
                errand.reply = envelope

    def _name(self, errand: _Errand) -> str:
        return self._name_of(errand.node) or "a hospital"

    def _taken(self, errand: _Errand) -> Message | None:
        """The reply of an errand; None where it is not whole yet, or must be asked for again."""
        if errand.reply is None:
            return None
        try:
            return self._line.fetch(errand.reply, self._largest)
        except LinkDown:
            return None
        except LinkRefused as refusal:
            raise RunLost(str(refusal)) from None
        except flower.MessageGone:
            errand.reply, errand.session, errand.posted = None, "", []
            return None
        except (flower.MessageTooLarge, ValueError) as error:
            return flower.failed_reply(_copy(errand.message, 1.0), str(error))

    def _patiently(self, call: Callable[[], T]) -> T:
        """The answer to a call, however long the server is away."""
        began, told = time.monotonic(), False
        while True:
            try:
                return call()
            except LinkDown as error:
                self._cuts += isinstance(error, LinkCut)
                if not told:
                    self._say(f"waiting for the server: {error}")
                    told = True
                time.sleep(pace(time.monotonic() - began, least=0.2, most=2.0, share=0.2))
            except LinkRefused as refusal:
                raise RunLost(str(refusal)) from None


def _code(envelope: flower.Envelope) -> str:
    """The code of a refusal, empty for any other reply."""
    head = envelope.head
    return (head.has_content() and wire.refusal_of(head.content)) or ""


def _copy(message: Message, seconds: float) -> Message:
    """The message, to be posted now and answered within so many seconds. Its id, a hash that includes a random group, can
    be guessed by no other hospital, and who cannot name a message cannot answer it."""
    metadata = message.metadata
    return Message(
        message.content, metadata.dst_node_id, metadata.message_type, ttl=seconds, group_id=secrets.token_hex(16)
    )


@dataclass(frozen=True)
class Deployment:
    """Where the running server is. `folder`: the server's, locked while a run is claimed. `note`: the file that keeps the
    run's id, so that a run whose process was killed is ended before the next."""

    socket: Path
    secret: bytes
    folder: Path
    note: Path


def run_deployed(
    server_app: ServerApp, at: Deployment, *, largest_reply: int, say: Callable[[str], None],
    name_of: Callable[[int], str | None] = lambda node: None,
) -> None:
    """Drive the ServerApp to its end in a new run of the server's.

    Errors: LinkDown where no server runs; RunLost where it gave the run up; what the ServerApp raises.
    """
    with _open_run(at, partial(DeployedGrid, largest_reply=largest_reply, say=say, name_of=name_of)) as grid:
        server_app(grid, Context(grid.run.run_id, flower.SUPERLINK_NODE_ID, node_config={}, state=RecordDict(), run_config={}))


@contextlib.contextmanager
def _open_run(at: Deployment, grid_of: Callable[[RunLine, int], DeployedGrid]) -> Iterator[DeployedGrid]:
    control = ControlLine(at.socket)
    try:
        with held(at.folder / ".claim.lock"):
            _end(control, int(at.note.read_text(encoding="utf-8")) if at.note.exists() else None)
            run_id = control.start_run(*thin_fab())
            write_text(at.note, str(run_id))
            token = _claim(control, at, run_id)
        line = RunLine(at.socket, token)
        try:
            line.begin()
            with Heartbeat(line.beat, HEARTBEAT_SECONDS):
                yield grid_of(line, run_id)
        finally:
            line.close()
            _end(control, run_id)
    finally:
        control.close()


def _claim(control: ControlLine, at: Deployment, run_id: int) -> str:
    """The token of our run. Others that wait were submitted by processes that died before they claimed them."""
    while True:
        claimed = acquire_run(at.socket, at.secret)
        if claimed is None:
            raise RunLost(f"run {run_id} was claimed by another process; is another program using this server's folder?")
        if claimed[0] == run_id:
            return claimed[1]
        _end(control, claimed[0])


def _end(control: ControlLine, run_id: int | None) -> None:
    if run_id is not None:
        with contextlib.suppress(LinkError):  # it has ended already, or ends by itself when its heartbeat stops
            control.stop_run(run_id)


def thin_fab() -> tuple[bytes, str]:
    """The app that a run must carry, and its hash: a name and no code. Nobody of ours reads it."""
    text = (
        '[project]\nname = "fedimaging"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "fedimaging"\n'
        '[tool.flwr.app.components]\nserverapp = "fedimaging:none"\nclientapp = "fedimaging:none"\n[tool.flwr.app.config]\n'
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), text)
    return packed.getvalue(), hashlib.sha256(packed.getvalue()).hexdigest()
