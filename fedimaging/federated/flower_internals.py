"""Parts of Flower 1.41 that are not its public interface: messages, what they are made of, and the SuperLink. The HTTP
clients are in `flower_http.py`, the headers of their requests in `flower_requests.py`; no other file touches any private part."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, TIMESTAMP_TOLERANCE
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf, make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from fedimaging.errors import LinkDown

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Record = ArrayRecord | MetricRecord | ConfigRecord

CLIENT_FAILED = 2
"""Flower's error code for a ClientApp that raised or died."""

_INLINE_BYTES = 2**20  # content up to here travels inside its message: one request in place of one for each object
_SMALL_OBJECTS = 64  # records, array heads and the message itself: a message of ours has five, and its chunks
_LEAST_CHUNK = 256 * 2**10  # a sender may cut finer than Flower's 5 MiB, but not so fine that ids alone fill the memory


class MessageTooLarge(Exception):
    """A message, or one answer, holds more than its receiver allows. Nothing of it is kept."""


class MessageGone(Exception):
    """A part of a message is not there any more: its sender never finished sending it."""


def take_server_identity(run_id: int, task_id: int = 1) -> None:
    """Messages can be made only by a process that says which run and node it is."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, task_id


def stamp(message: Message) -> str:
    """Give a message its id (a SuperLink would) and return it."""
    message_id = uuid4().hex
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def delivered(message: Message) -> Message:
    """What a hospital receives: a message with records of its own (a round's messages share one content).

    Arrays are immutable bytes, so they are shared and not copied.
    """
    content = RecordDict({name: _fresh(record) for name, record in message.content.items()})
    return make_message(metadata=message.metadata, content=content)


def _fresh(record: Record) -> Record:
    """A record with entries of its own (copy.copy would share them)."""
    make = cast(Callable[[dict[str, Any]], Record], type(record))
    return make(dict(record.items()))


def failed_reply(message: Message, reason: str) -> Message:
    """The error reply that a SuperLink would send for a hospital whose process died."""
    return Message(Error(CLIENT_FAILED, reason), reply_to=message)


def empty_run(run_id: int) -> Run:
    """A Run record for a grid without SuperLink."""
    return Run.create_empty(run_id)


@dataclass(frozen=True)
class Envelope:
    """A message that waits at the server: its head (metadata, and small content), its size so far in bytes, and the ids of
    the objects that its content is made of where it is not small."""

    head: Message
    size: int
    objects: tuple[str, ...]

    @property
    def id(self) -> str:
        """The message's own id, a hash of all that it holds."""
        return self.head.metadata.message_id

    @property
    def from_server(self) -> bool:
        """True for a reply that the server wrote in a hospital's stead: the message did not reach it, or got lost there."""
        return self.head.metadata.src_node_id == SUPERLINK_NODE_ID

    def check(self, largest_bytes: int) -> None:
        """Error: MessageTooLarge for more bytes, or for so many objects that they cannot be of a message of this size."""
        if self.size > largest_bytes or len(self.objects) > _SMALL_OBJECTS + largest_bytes // _LEAST_CHUNK:
            raise MessageTooLarge(f"{self.size} bytes and {len(self.objects)} objects")


def envelopes(heads: Iterable[Any], trees: Iterable[ObjectTree]) -> list[Envelope]:
    """Messages as an answer of the server lists them. Error: ValueError for what is none."""
    return [_envelope(head, tree) for head, tree in zip(heads, trees, strict=True)]


def _envelope(head: Any, tree: ObjectTree) -> Envelope:
    try:
        message = message_from_proto(head)
    except Exception as error:  # as in `_put_together`
        raise ValueError(f"what came is no message: {error!r}") from None
    whole = message.has_error() or len(message.content) > 0
    objects = () if whole else tuple(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
    return Envelope(message, head.ByteSize(), objects)


@dataclass(frozen=True)
class Written:
    """A message as it is posted: its head, the tree of its objects, and the objects that are sent apart."""

    head: Any
    tree: ObjectTree
    parts: dict[str, Any]


def written(message: Message) -> Written:
    """Write a message: small content inside its head, large content as Flower's objects, so that no request is large and
    messages that share content share its objects."""
    message.metadata.__dict__["_message_id"] = message.object_id
    arrays = (array for record in message.content.array_records.values() for array in record.values())
    if sum(len(array.data) for array in arrays) <= _INLINE_BYTES:
        return Written(message_to_proto(message), ObjectTree(object_id=message.object_id), {})
    head = message_to_proto(remove_content_from_message(message))
    return Written(head, get_object_tree(message), get_all_nested_objects(message))


def send_parts(client: Any, node: Node, run: int, parts: dict[str, Any], answer: Any) -> None:
    """Send those parts of posted messages that the server's `answer` asks for. Error: LinkDown where it gave up waiting."""
    push = make_push_object_fn_protobuf(client.PushObject, node, run, answer.session_id)
    try:
        push_objects(parts, push, object_ids_to_push=set(answer.objects_to_push))
    except ObjectPushError:
        raise LinkDown("the server gave up waiting for the rest of a message.") from None


def read_message(client: Any, node: Node, envelope: Envelope, largest_bytes: int, wait_seconds: float) -> Message:
    """Pull what a message is made of, never more than `largest_bytes` in all, and put it together.

    Errors: MessageTooLarge; MessageGone; LinkDown where its sender is still sending after so many seconds; ValueError for
    what is no message.
    """
    envelope.check(largest_bytes)
    if not envelope.objects:
        return envelope.head
    pull, left = make_pull_object_fn_protobuf(client.PullObject, node, envelope.head.metadata.run_id), largest_bytes

    def bounded(object_id: str) -> bytes:
        nonlocal left
        try:
            content = pull(object_id)
        except ObjectPullError:
            raise MessageGone(envelope.id) from None
        left -= len(content)
        if left < 0:
            raise MessageTooLarge(f"more than {largest_bytes} bytes")
        return content

    wait = partial(pull_objects, pull_object_fn=bounded, initial_backoff=0.1, backoff_cap=0.5, max_time=wait_seconds)
    try:
        found = wait([envelope.id])  # a sender sends the message itself last: once it is there, so is what it is made of
        found |= wait([part for part in envelope.objects if part != envelope.id])
    except ObjectPullError:
        raise LinkDown("a message is still on its way.") from None
    return _put_together(envelope, found, largest_bytes)


def _put_together(envelope: Envelope, found: dict[str, bytes], largest_bytes: int) -> Message:
    try:
        if _unfolded(found) > largest_bytes:
            raise MessageTooLarge(f"parts that unfold to more than {largest_bytes} bytes")
        message = inflate_object_from_contents(envelope.id, found)
    except MessageTooLarge:
        raise
    except Exception as error:  # whatever a hostile sender wrote, in whatever way Flower stumbles over it
        raise ValueError(f"what came is no message: {error!r}") from None
    if not isinstance(message, Message) or not message.has_content():
        raise ValueError("what came is no message with content")
    # The metadata of the head, which the server vouches for: not those inside, which the sender wrote.
    return make_message(metadata=envelope.head.metadata, content=message.content)


def _unfolded(contents: Mapping[str, bytes]) -> int:
    """Bytes of the arrays that these objects make. An array lists its chunks by number, and may list one a million times:
    a message of one megabyte would fill the memory."""
    most = 0
    for content in contents.values():
        kind, parts, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            order = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            most += sum(len(contents[parts[place]]) for place in order)
    return most


def of_its_own(request: bytes) -> bool:
    """Whether a node's request to post messages holds messages of that node alone.

    Flower 1.41 checks that the node has the key that signed, and that a reply's sender is whom the question went to, but not
    that these two are one: who knew the id of another hospital's question could answer it in its name.
    """
    try:
        found = PushMessagesRequest.FromString(request)
    except DecodeError:
        return False
    return all(head.metadata.src_node_id == found.node.node_id for head in found.messages_list)


def by_the_servers_clock(reply: Message) -> Message:
    """The reply, dated back, so that one of a hospital whose clock is ahead is not thrown away as expired. It expires when
    the question does, as it did before."""
    reply.metadata.created_at -= TIMESTAMP_TOLERANCE
    reply.metadata.ttl += TIMESTAMP_TOLERANCE
    return reply


def superlink_app(database: Path, secret: bytes) -> "ASGIApp":
    """Flower's server as an ASGI application: state in a SQLite file, only registered keys may join, and only a process
    that knows `secret` may act as a run's ServerApp. It starts no process and installs nothing."""
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    config = SuperLinkLifespanConfig(
        database=str(database), superexec_auth_secret=secret, enable_supernode_auth=True, isolation="process",
        runtime_dependency_install=False, simulation=False, authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None, fleet_event_log_plugin=None, enable_event_log=False, artifact_provider=None,
        # The addresses and certificates of listeners, which are ours (`superlink.py`), and of Flower's old gRPC servers.
        control_address="", health_server_address=None, host="", port=0, insecure=False, certificates=None,
        fleet_api_type="grpc-rere", fleet_api_address=None, ssl_ca_certfile=None, ssl_certfile=None, ssl_keyfile=None,
    )
    return create_app(config, SuperLinkLifespan)
