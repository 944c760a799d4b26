"""Flower 1.41's protocol over HTTP, as far as we speak it: the second of the files that touch Flower's private parts.

Three lines to one server. FleetLine: a hospital, with its own key, over TLS. ControlLine and RunLine: the operator and a
study's run, over a Unix socket that only the server's own user can open. Each call is tried once; who tries again, and
for how long, is decided by the caller. Errors of every call: LinkDown (no answer), LinkUntrusted, LinkRefused.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, StopRunRequest, UnregisterNodeRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedimaging.errors import LinkCut, LinkDown, LinkRefused, LinkUntrusted, RunError
from fedimaging.federated import flower_internals as flower
from fedimaging.federated.flower_internals import Envelope, MessageTooLarge
from fedimaging.federated.flower_requests import SignedRequests, VersionedRequests

LARGEST_RESPONSE = 16 * 2**20
"""Bytes of one HTTP answer that are read; Flower cuts arrays into objects of 5 MiB."""

LARGEST_HEADS = 4 * 2**20
"""The same for a hospital's answers that are no object: heads of messages, which unfold to thirty times their bytes."""

HEARTBEAT_SECONDS = 4.0
"""How often a hospital or a run says that it is there."""

_NODE_INTERVAL = 10.0  # told to the server, Flower's least: a node that is silent for twice as long counts as gone
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)  # the shorter, the sooner a network that is back is noticed
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_CLOCK_SECONDS = 60
_AWAY = {408, 425, 429, 502, 503, 504}  # a proxy or a restarting server, not a refusal

T = TypeVar("T")
_Client = TypeVar("_Client", bound=ProtobufClient)


@dataclass(frozen=True)
class NodeState:
    """What the server's database says of a registered key. `activated` changes whenever the node joins anew."""

    node_id: int
    public_key: bytes
    online: bool
    activated: str


class _Bounded(httpx.SyncByteStream):
    """The body of an answer, cut off with an error beyond a size. Unlike httpx's own reading it cannot fill the memory."""

    def __init__(self, stream: httpx.SyncByteStream, most: int) -> None:
        self._stream, self._most = stream, most

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for chunk in self._stream:
            read += len(chunk)
            if read > self._most:
                raise MessageTooLarge("an answer of the server")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _bound(response: httpx.Response, most: int = LARGEST_RESPONSE) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":  # a few packed bytes may hold gigabytes
        raise MessageTooLarge("a packed answer of the server")
    response.encoding = "utf-8"  # the server's own choice may be any codec of Python's, one that unpacks among them
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Bounded(response.stream, most)


def _bound_hospitals(response: httpx.Response) -> None:
    _bound(response, LARGEST_RESPONSE if response.request.url.path.endswith("/pull-object") else LARGEST_HEADS)


def _client(
    kind: type[_Client], url: str, http: httpx.Client, interceptors: Sequence[Any],
    bound: Callable[[httpx.Response], None] = _bound,
) -> _Client:
    """Flower's client for one of its APIs over an httpx client of ours: bounded answers, no redirects, no cookies."""
    client = kind(url, interceptors=[VersionedRequests(), *interceptors], verify=False)
    client._client.close()
    http.event_hooks = {"response": [bound]}
    http.headers["accept-encoding"] = "identity"
    http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    client._client = http
    return client


def _over_tls(ca: Path) -> httpx.Client:
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except OSError as error:
        raise RunError(f"the authority's certificate {str(ca)!r} cannot be read: {error}; copy it again.") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return httpx.Client(verify=context, timeout=_TIMEOUT)


class _OverSocket(httpx.HTTPTransport):
    def __init__(self, socket: Path) -> None:
        super().__init__(uds=str(socket))
        self._socket = socket

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self._socket.exists():
            raise httpx.ConnectError(f"no server has opened {self._socket}")
        return super().handle_request(request)


def _over_socket(socket: Path) -> httpx.Client:
    return httpx.Client(transport=_OverSocket(socket), timeout=_TIMEOUT)


def _call(call: Callable[..., T], *arguments: Any) -> T:
    """One call; an answer that is none (too long, packed, not what was asked for) is as good as no answer."""
    try:
        return _try(call, *arguments)
    except (MessageTooLarge, ValueError) as error:
        raise LinkCut(f"the server sent something that is no answer: {error}.") from None


def _try(call: Callable[..., T], *arguments: Any) -> T:
    """One call, with httpx's errors as ours."""
    try:
        return call(*arguments)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in _AWAY:
            raise LinkCut(f"the server is not ready (HTTP {status}).") from None
        raise LinkRefused(status, _printable(error.response.text[:300]) + _clock_words(error.response)) from None
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise LinkUntrusted(f"the server's certificate is not to be trusted: {error}.") from None
        kind = LinkDown if isinstance(error, _UNSENT) else LinkCut
        raise kind(f"no answer from the server: {(str(error) or type(error).__name__).rstrip('.')}.") from None


def _printable(text: str) -> str:
    """The server's words for somebody's screen: in one line, and without what a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _clock_words(response: httpx.Response) -> str:
    """Flower refuses a hospital whose clock is five minutes off without saying so; the answer's own date tells."""
    try:
        theirs = parsedate_to_datetime(response.headers["date"])
        ahead = (datetime.now(UTC) - theirs).total_seconds()
    except (KeyError, ValueError, TypeError, OverflowError):  # no date, or none with a time zone
        return ""
    return f"; this machine's clock is {round(ahead, -1):+.0f} s off the server's, set it" if abs(ahead) > _CLOCK_SECONDS else ""


def _confirm(client: Any, node: Node, envelope: Envelope) -> None:
    """Let the server forget the objects of a message; what is not confirmed, or came in one piece, goes when its run ends."""
    if envelope.objects:
        with contextlib.suppress(LinkDown):  # the message is here, whole
            _call(client.ConfirmMessageReceived, ConfirmMessageReceivedRequest(
                node=node, run_id=envelope.head.metadata.run_id, message_object_id=envelope.id))


class FleetLine:
    """A hospital's line to the server. It opens no port, and asks for messages only: not for code, not for run options.
    Error of making one: RunError where `ca` cannot be read."""

    def __init__(self, address: str, ca: Path, key: EllipticCurvePrivateKey) -> None:
        public = key.public_key()
        self._public = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        guard = SignedRequests(key)
        self._client = _client(FleetHttpClient, f"https://{address}", _over_tls(ca), [guard], _bound_hospitals)
        self._node = Node()

    def activate(self) -> None:
        """Join. LinkRefused: the key is not registered, or a process with it was alive less than 20 seconds ago."""
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=_NODE_INTERVAL)
        self._node = Node(node_id=_call(self._client.ActivateNode, request).node_id)

    def deactivate(self) -> None:
        """Leave, so that the server knows at once and the next start need not wait."""
        _call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id))

    def beat(self) -> bool:
        """Say that this hospital is there; False where the server does not know it any more."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_NODE_INTERVAL)
        return bool(_call(self._client.SendNodeHeartbeat, request).success)

    def next(self) -> Envelope | None:
        """The oldest message that waits for this hospital; the server hands each out once, and one at a time. Error also:
        ValueError for what is no message."""
        answer = _call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        found = flower.envelopes(answer.messages_list[:1], answer.message_object_trees[:1])
        return found[0] if found else None

    def fetch(self, envelope: Envelope, largest_bytes: int, wait_seconds: float = 300.0) -> Message:
        """The message itself. Errors also as for `flower_internals.read_message`."""
        message = _try(flower.read_message, self._client, self._node, envelope, largest_bytes, wait_seconds)
        _confirm(self._client, self._node, envelope)
        return message

    def reply(self, reply: Message, seconds: float) -> None:
        """Send a reply that took so many seconds of work; one that nobody waits for any more is dropped by the server."""
        post = flower.written(reply)
        answer = _call(self._client.PushMessages, PushMessagesRequest(
            node=self._node, messages_list=[post.head], message_object_trees=[post.tree], clientapp_runtime_list=[seconds]))
        _call(flower.send_parts, self._client, self._node, reply.metadata.run_id, post.parts, answer)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class ControlLine:
    """The operator's line: register hospitals' keys, start and stop runs."""

    def __init__(self, socket: Path) -> None:
        self._client = _client(ControlHttpClient, "http://control", _over_socket(socket), [])

    def register(self, public_key: bytes, name: str) -> None:
        """Admit a key (PEM). LinkRefused where it is registered, or was once."""
        _call(self._client.RegisterNode, RegisterNodeRequest(public_key=public_key, name=name))

    def unregister(self, node_id: int) -> None:
        """Shut a node out; its key cannot be used again."""
        _call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[NodeState]:
        """All keys that are registered."""
        answer = _call(self._client.ListNodes, ListNodesRequest())
        return [_node_state(info) for info in answer.nodes_info if info.status != "unregistered"]

    def start_run(self, fab: bytes, fab_hash: str) -> int:
        """Submit a run; returns its id."""
        return int(_call(self._client.StartRun, StartRunRequest(fab=Fab(hash_str=fab_hash, content=fab))).run_id)

    def stop_run(self, run_id: int) -> None:
        """End a run and throw its messages away. LinkRefused where it has ended already."""
        _call(self._client.StopRun, StopRunRequest(run_id=run_id))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _node_state(info: NodeInfo) -> NodeState:
    return NodeState(info.node_id, bytes(info.public_key), info.status == "online", info.last_activated_at)


def acquire_run(socket: Path, secret: bytes) -> tuple[int, str] | None:
    """Claim the oldest run that waits for its ServerApp: (run id, token), None where none waits."""
    guard = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"])
    client = _client(RuntimeHttpClient, "http://runtime", _over_socket(socket), [guard])
    try:
        answer = _call(client.AcquireTask, AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    finally:
        client.close()
    return (answer.task.run_id, answer.token) if answer.token else None


class RunLine:
    """The line of one claimed run: we are its ServerApp process, and the code that the run carries is never looked at."""

    def __init__(self, socket: Path, token: str) -> None:
        guard = RuntimeTokenHttpInterceptor(token)
        self._client = _client(RuntimeHttpClient, "http://runtime", _over_socket(socket), [guard])
        self._node = Node(node_id=flower.SUPERLINK_NODE_ID)

    def begin(self) -> None:
        """Start the claimed run; from here on this process makes messages in its name."""
        answer = _call(self._client.PullTaskInput, PullTaskInputRequest())
        flower.take_server_identity(answer.run.run_id, answer.task_id)

    def beat(self) -> bool:
        """Say that the run is alive; False once the server has given it up (after 60 silent seconds)."""
        return bool(_call(self._client.SendTaskHeartbeat, SendTaskHeartbeatRequest()).success)

    def nodes(self) -> list[NodeState]:
        """The nodes that are online."""
        return [_node_state(info) for info in _call(self._client.GetNodes, GetNodesRequest()).nodes]

    def push(self, messages: Sequence[Message]) -> list[str]:
        """Post messages; content that they share is sent once. Returns their ids; "" for a node that cannot be posted to."""
        posts = [flower.written(message) for message in messages]
        if posts[0].parts:  # what they share goes with the first, so that the others are whole as soon as they are seen
            return [*self._push(posts[:1]), *(self._push(posts[1:]) if posts[1:] else ())]
        return self._push(posts)

    def _push(self, posts: Sequence[flower.Written]) -> list[str]:
        answer = _call(self._client.PushMessages, PushAppMessagesRequest(
            messages_list=[post.head for post in posts], message_object_trees=[post.tree for post in posts]))
        parts = {key: part for post in posts for key, part in post.parts.items()}
        _call(flower.send_parts, self._client, self._node, posts[0].head.metadata.run_id, parts, answer)
        return list(answer.message_ids)

    def replies(self, message_ids: Iterable[str]) -> list[Envelope]:
        """Heads of the replies to these messages that have come, each once; an error reply where a node is gone."""
        answer = _call(self._client.PullMessages, PullAppMessagesRequest(message_ids=list(message_ids)))
        return flower.envelopes(answer.messages_list, answer.message_object_trees)

    def fetch(self, envelope: Envelope, largest_bytes: int, wait_seconds: float = 2.0) -> Message:
        """A reply itself. Errors also as for `flower_internals.read_message`."""
        message = _try(flower.read_message, self._client, self._node, envelope, largest_bytes, wait_seconds)
        _confirm(self._client, self._node, envelope)
        return message

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
