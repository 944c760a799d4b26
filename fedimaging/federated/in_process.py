"""The default carrier: the same ServerApp and ClientApp, without a network, lazily and in a fixed order.

`workers` 1 runs the hospitals one after another in this process with all threads; more fork that many processes, each
with one thread (a thread pool does not survive a fork). Replies come in the order of the messages whatever finishes
first, and at most two messages a worker are under way, so memory does not grow with the number of hospitals.
"""

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedimaging.errors import RunError
from fedimaging.federated import flower_internals as flower

_RUN_ID = 1
_AHEAD = 2
_MAILBOX_BYTES = 1 << 28


def run_in_process(
    server_app: ServerApp, client_app: ClientApp, n_nodes: int, *, workers: int,
    fault: Callable[[Message], bool] | None = None,
) -> None:
    """Run the ServerApp to its end over `n_nodes` hospitals; node k is partition k.

    `fault(message)` True: the hospital never answers this message (to test drop-outs).
    Error: what the ServerApp raises.
    """
    flower.take_server_identity(_RUN_ID)
    with InProcessGrid(client_app, n_nodes, workers=workers, fault=fault) as grid:
        server_app(grid, _context(flower.SUPERLINK_NODE_ID, 0, n_nodes))


class _Mailbox:
    """Hands one message at a time from the parent to a child or back: through memory that both map, the length through the
    pipe. A pipe alone is read in pieces of 64 KiB, which made large networks wait for their weights."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _MAILBOX_BYTES)  # shared with the children; what is not used takes no memory

    def put(self, pipe: Connection, message: Message) -> None:
        """Errors: those of the pipe."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        if len(data) > _MAILBOX_BYTES:
            pipe.send(None)
            pipe.send_bytes(data)
            return
        self._memory[: len(data)] = data
        pipe.send(len(data))

    def take(self, pipe: Connection) -> Message:
        """Waits for it. Errors: those of the pipe."""
        length = pipe.recv()
        if length is None:
            return cast(Message, pickle.loads(pipe.recv_bytes()))
        with memoryview(self._memory) as whole, whole[:length] as data:
            return cast(Message, pickle.loads(data))


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    mailbox: _Mailbox
    busy_with: int | None = None


@dataclass
class InProcessGrid(Grid):
    """A Grid whose nodes are calls of one ClientApp in this process, or in a few forked ones."""

    client_app: ClientApp
    n_nodes: int
    workers: int = 1
    fault: Callable[[Message], bool] | None = None
    _pending: dict[str, Message] = field(default_factory=dict)
    _pool: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> "InProcessGrid":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool:
            worker.pipe.close()
        for worker in self._pool:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
        self._pool.clear()

    def set_run(self, run: object) -> None:
        """There is one run; nothing to set."""

    @property
    def run(self) -> flower.Run:
        """A placeholder: no SuperLink, no run record."""
        return flower.empty_run(_RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """1 .. n_nodes: node k + 1 is partition k."""
        return list(range(1, self.n_nodes + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages until they are pulled."""
        ids = []
        for message in messages:
            ids.append(flower.stamp(message))
            self._pending[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Do the work of these messages now and return the replies."""
        return list(self._run([self._pending.pop(i) for i in message_ids if i in self._pending], None))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Lazily yield the replies in the order of the messages. After `timeout` seconds no further hospital is asked
        (one that is at work is waited for: there is no network to cut)."""
        messages = list(messages)
        for message in messages:
            flower.stamp(message)
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._run(messages, deadline)

    def _run(self, messages: list[Message], deadline: float | None) -> Iterator[Message]:
        messages = [m for m in messages if self.fault is None or not self.fault(m)]
        if self.workers > 1:
            yield from self._run_pool(messages, deadline)
            return
        for message in messages:
            if deadline is not None and time.monotonic() > deadline:
                return
            yield self._answer(message)

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        reply = self.client_app(message=flower.delivered(message), context=_context(node, node - 1, self.n_nodes))
        flower.stamp(reply)
        return reply

    def _run_pool(self, messages: list[Message], deadline: float | None) -> Iterator[Message]:
        """Hand message i to a free worker as long as i is less than a fixed way ahead of the next reply to yield."""
        while len(self._pool) < min(self.workers, len(messages)):
            self._pool.append(self._start_worker())
        finished: dict[int, Message] = {}
        next_out, sent = 0, self._hand_out(messages, 0, 0, deadline)
        while next_out < sent:  # ends early once the deadline passed and everybody asked has answered
            for place, reply in self._collect(messages):
                finished[place] = reply
            sent = self._hand_out(messages, sent, next_out, deadline)  # first of all: nobody is idle while replies are used
            while next_out in finished:
                yield finished.pop(next_out)
                next_out += 1
            sent = self._hand_out(messages, sent, next_out, deadline)

    def _hand_out(self, messages: list[Message], sent: int, next_out: int, deadline: float | None) -> int:
        """Give free workers what is next, at most so far ahead; returns how many messages are handed out by now."""
        for worker in self._pool:
            late = deadline is not None and time.monotonic() > deadline
            if worker.busy_with is None and sent < min(len(messages), next_out + _AHEAD * self.workers) and not late:
                with contextlib.suppress(BrokenPipeError):  # a dead worker is noticed when its pipe is read
                    worker.mailbox.put(worker.pipe, messages[sent])
                worker.busy_with, sent = sent, sent + 1
        return sent

    def _collect(self, messages: list[Message]) -> Iterator[tuple[int, Message]]:
        """Replies of the workers that finished; a worker that died is replaced and its hospital's reply is an error."""
        busy = {worker.pipe: worker for worker in self._pool if worker.busy_with is not None}
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]
            place = worker.busy_with
            assert place is not None
            try:
                reply = worker.mailbox.take(worker.pipe)
            except (EOFError, OSError):
                reply = flower.failed_reply(messages[place], "worker died")
                flower.stamp(reply)
                self._pool[self._pool.index(worker)] = self._start_worker()
            worker.busy_with = None
            yield place, reply

    def _start_worker(self) -> _Worker:
        here, there = multiprocessing.Pipe()
        mailbox = _Mailbox()
        others = [worker.pipe for worker in self._pool]
        try:
            process = multiprocessing.get_context("fork").Process(
                target=self._serve, args=(there, mailbox, [here, *others]), daemon=True
            )
            process.start()
        except OSError as error:
            raise RunError(f"cannot start a worker process: {error}; use fewer with --workers.") from error
        there.close()
        return _Worker(process, here, mailbox)

    def _serve(self, pipe: Connection, mailbox: _Mailbox, not_mine: list[Connection]) -> None:
        """A worker's life: answer messages until the parent closes its end of the pipe (or dies)."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        for other in not_mine:
            other.close()
        _one_thread()
        with contextlib.suppress(EOFError, BrokenPipeError):
            while True:
                mailbox.put(pipe, self._answer(mailbox.take(pipe)))
        os._exit(0)


def _one_thread() -> None:
    """OpenMP's pool does not survive a fork: a child that asks for more than one thread can wait for ever."""
    import torch

    torch.set_num_threads(1)


def _context(node: int, partition: int, n_nodes: int) -> Context:
    return Context(
        run_id=_RUN_ID, node_id=node, node_config={"partition-id": partition, "num-partitions": n_nodes},
        state=RecordDict(), run_config={},
    )
