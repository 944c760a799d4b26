import os
import signal

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedimaging.federated import in_process
from fedimaging.federated.in_process import run_in_process


def _client(die_at: int | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        place = int(context.node_config["partition-id"])
        if place == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        value = message.content["weights"]["w"].numpy() + place  # type: ignore[index]
        message.content["seen"] = message.content["weights"]  # neither this …
        message.content["weights"]["seen"] = Array(value)  # type: ignore[index]  # … nor this may reach the others
        return Message(RecordDict({"update": ArrayRecord({"w": Array(value)})}), reply_to=message)

    return app


def _replies(client: ClientApp, n: int, workers: int, timeout: float | None = None, **keys: object) -> list[Message]:
    found: list[Message] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        content = RecordDict({"weights": ArrayRecord({"w": Array(np.zeros(2, np.float32))})})
        messages = [Message(content, node, "train") for node in grid.get_node_ids()]
        found.extend(grid.send_and_receive(messages, timeout=timeout))
        assert set(content) == {"weights"}
        assert set(content["weights"]) == {"w"}

    run_in_process(server, client, n, workers=workers, **keys)  # type: ignore[arg-type]
    return found


def _values(replies: list[Message]) -> list[float]:
    return [float(reply.content["update"]["w"].numpy()[0]) for reply in replies]  # type: ignore[index]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_replies_come_in_the_order_of_the_messages(workers: int) -> None:
    assert _values(_replies(_client(), 11, workers)) == [float(k) for k in range(11)]


def test_a_hospital_that_never_answers_is_absent() -> None:
    replies = _replies(_client(), 4, 1, fault=lambda message: message.metadata.dst_node_id == 3)
    assert _values(replies) == [0.0, 1.0, 3.0]


def test_a_worker_that_is_killed_costs_its_hospital_the_round_and_nobody_else() -> None:
    replies = _replies(_client(die_at=2), 6, 2)
    assert [reply.has_error() for reply in replies] == [False, False, True, False, False, False]
    assert replies[2].metadata.src_node_id == 3
    assert _values([r for r in replies if not r.has_error()]) == [0.0, 1.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_after_the_deadline_nobody_else_is_asked(workers: int) -> None:
    assert _replies(_client(), 5, workers, timeout=-1.0) == []


def test_an_error_of_the_server_ends_the_run_and_the_workers() -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        content = RecordDict({"weights": ArrayRecord({"w": Array(np.zeros(2, np.float32))})})
        for _ in grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()]):
            raise ValueError("the server fails")

    with pytest.raises(ValueError, match="the server fails"):
        run_in_process(server, _client(), 4, workers=2)


def test_a_message_that_does_not_fit_the_shared_memory_goes_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_process, "_MAILBOX_BYTES", 64)
    assert _values(_replies(_client(), 5, 2)) == [float(k) for k in range(5)]
