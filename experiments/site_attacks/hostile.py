"""The hostile operator: he has the server's folder and so every right there is. He writes his own driver, with Flower's own
messages, and pushes what he likes into the real SuperLink."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedimaging.errors import LinkError
from fedimaging.federated import wire
from fedimaging.federated.flower_http import HEARTBEAT_SECONDS, ControlLine, RunLine, acquire_run
from fedimaging.federated.flower_internals import SUPERLINK_NODE_ID, message_to_proto
from fedimaging.federated.timing import Heartbeat
from fedimaging.runs.server_folder import ServerFolder

LARGEST = 64 * 2**20
_ANSWER_SECONDS, _ASKED_AGAIN = 90.0, 4


@dataclass(frozen=True)
class Answer:
    """What came back to one message: the code of a refusal, or the names in a real reply; and all its bytes."""

    text: str
    arrays: dict[str, np.ndarray]
    source: int


class Operator:
    """One run on the real server, with whatever app he likes; a context manager."""

    def __init__(self, server: ServerFolder, fab: bytes) -> None:
        self.fab_hash = hashlib.sha256(fab).hexdigest()
        self._server = server
        self._control = ControlLine(server.socket)
        self.run_id = self._control.start_run(fab, self.fab_hash)
        claimed = acquire_run(server.socket, server.secret)
        if claimed is None:
            raise RuntimeError("the server has no run for us")
        self.line = RunLine(server.socket, claimed[1])
        self.line.begin()
        self._heart = Heartbeat(self.line.beat, HEARTBEAT_SECONDS)

    def __enter__(self) -> "Operator":
        self._heart.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._heart.__exit__()
        with contextlib.suppress(LinkError):  # it has ended already
            self._control.stop_run(self.run_id)
        self.line.close()
        self._control.close()

    def node(self, name: str) -> int:
        """The node id under which a hospital's key joined, once it has. Error: TimeoutError."""
        key, end = self._server.sites()[name].key, time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < end:
            for node in self.line.nodes():
                if node.public_key.decode() == key:
                    return node.node_id
            time.sleep(0.1)
        raise TimeoutError(f"{name} has not joined for {_ANSWER_SECONDS:.0f} s")

    def online(self, name: str) -> bool:
        """Whether a hospital is there."""
        key = self._server.sites()[name].key
        return any(node.public_key.decode() == key for node in self.line.nodes())

    def ask(self, node: int, *questions: tuple[str, RecordDict]) -> list[Answer]:
        """Post (type, content) to a node one after the other; the answers."""
        return [
            self.until_answered(lambda k=kind, c=content: self.line.push([Message(c, node, k, ttl=300.0)])[0])  # type: ignore[misc]
            for kind, content in questions
        ]

    def until_answered(self, post: Callable[[], str]) -> Answer:
        """The hospital's answer. As an honest server does, it is asked again where the server answers in its stead, because it
        joined anew meanwhile, whereby Flower loses a message."""
        for _ in range(_ASKED_AGAIN):
            answer = self.answer_to(post())
            if answer.source != SUPERLINK_NODE_ID:
                break
            time.sleep(2 * HEARTBEAT_SECONDS)  # the server knows again that it is there
        return answer

    def answer_to(self, message_id: str) -> Answer:
        """Wait for the answer to a message."""
        end = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < end:
            for envelope in self.line.replies([message_id]):
                return _read(self.line.fetch(envelope, LARGEST))
            time.sleep(0.1)
        return Answer("(no answer)", {}, 0)

    def declare(self, node: int, content: RecordDict, parts: int) -> str:
        """Post a message that says it is made of so many objects of 5 MiB, and send none of them."""
        message = Message(content, node, "train", ttl=300.0)
        message.metadata.__dict__["_message_id"] = message.object_id
        tree = get_object_tree(message)
        for number in range(parts):
            tree.children.append(ObjectTree(object_id=hashlib.sha256(str(number).encode()).hexdigest()))
        head = message_to_proto(remove_content_from_message(message))
        return str(self.line._client.PushMessages(
            PushAppMessagesRequest(messages_list=[head], message_object_trees=[tree])).message_ids[0])

    def post_folded(self, node: int, content: RecordDict, times: int) -> tuple[str, int]:
        """Post a message whose array lists its one chunk so many times; its id, and the bytes that travel."""
        message = Message(content, node, "train", ttl=300.0)
        contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
        tree = get_object_tree(message).SerializeToString()
        made, renamed = dict[str, bytes](), dict[bytes, bytes]()
        for key, text in contents.items():  # children come before parents
            for old, new in renamed.items():
                text = text.replace(old, new)
            if text.startswith(b"Array "):
                text = _folded(text, times)
            name = hashlib.sha256(text).hexdigest()
            made[name], renamed[key.encode()] = text, name.encode()
        for old, new in renamed.items():
            tree = tree.replace(old, new)
        whole = ObjectTree.FromString(tree)
        message.metadata.__dict__["_message_id"] = whole.object_id
        head = message_to_proto(remove_content_from_message(message))
        client = self.line._client
        answer = client.PushMessages(PushAppMessagesRequest(messages_list=[head], message_object_trees=[whole]))
        for key in answer.objects_to_push:
            client.PushObject(PushObjectRequest(
                node=self.line._node, run_id=self.run_id, object_id=key, object_content=made[key],
                session_id=answer.session_id))
        return str(answer.message_ids[0]), sum(map(len, made.values()))


def _folded(array: bytes, times: int) -> bytes:
    """A deflated array whose first chunk is listed so many times."""
    head, body = array.split(b"\x00", 1)
    start, rest = body.split(b'"arraychunk_ids": [', 1)
    body = start + b'"arraychunk_ids": [' + b",".join([b"0"] * times) + rest[rest.index(b"]") :]
    kind, children, _ = head.rsplit(b" ", 2)
    return b"%s %s %d\x00%s" % (kind, children, len(body), body)


def _read(message: Message) -> Answer:
    source = message.metadata.src_node_id
    if message.has_error():
        return Answer(f"(error {message.error.code})", {}, source)
    code = wire.refusal_of(message.content)
    if code is not None:
        return Answer(code, {}, source)
    arrays = {f"{name}.{key}": array.numpy() for name, record in message.content.array_records.items()
              for key, array in record.items()}  # fmt: skip
    return Answer("+".join(sorted(message.content)), arrays, source)


def instruction(study: object, round: object, weights: np.ndarray | Array, **extra: object) -> RecordDict:
    """What a server sends, with any values at all, and more fields than there are."""
    array = weights if isinstance(weights, Array) else Array(weights)
    head = ConfigRecord({"study": study, "round": round, **extra})  # type: ignore[dict-item]
    return RecordDict({"instruction": head, "weights": ArrayRecord({"weights": array})})


def code_that_writes(marks: Path) -> bytes:
    """A real Flower app whose client and server write a file when they are imported, and when they are called."""
    source = f"""
import os, sys, uuid
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

def mark(what):
    os.makedirs({str(marks)!r}, exist_ok=True)
    with open(os.path.join({str(marks)!r}, f"{{what}} {{uuid.uuid4().hex}}"), "w") as file:
        file.write(" ".join(sys.argv))

mark("imported")
client, server = ClientApp(), ServerApp()

@client.train()
def train(message, context):
    mark("client called")
    return Message(message.content, reply_to=message)

@server.main()
def main(grid, context):
    mark("server called")
"""
    project = (
        '[project]\nname = "evil"\nversion = "1.0.0"\ndependencies = ["flwr>=1.41.0"]\n'
        '[tool.flwr.app]\npublisher = "evil"\n[tool.flwr.app.components]\n'
        'serverapp = "evil.app:server"\nclientapp = "evil.app:client"\n[tool.flwr.app.config]\n'
    )
    files = {"pyproject.toml": project.encode(), "evil/__init__.py": b"", "evil/app.py": source.encode()}
    return build_fab_from_files(files)[0]  # as `flwr build` does, with the list of hashes that Flower's node asks for
