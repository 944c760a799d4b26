"""The one place that touches parts of Flower 1.41 that are not its public interface."""

from collections.abc import Callable
from typing import Any, cast
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Record = ArrayRecord | MetricRecord | ConfigRecord

CLIENT_FAILED = 2
"""Flower's error code for a ClientApp that raised or died."""


def take_server_identity(run_id: int) -> None:
    """Messages can be made only by a process that says which run and node it is."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, 1


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
