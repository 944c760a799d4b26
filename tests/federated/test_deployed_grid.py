"""The carrier of a deployment against a server made of dictionaries: who answers when, who dies with what."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedimaging.errors import LinkCut, LinkDown, LinkRefused
from fedimaging.federated import deployed_grid, wire
from fedimaging.federated.deployed_grid import DeployedGrid, RunLost, thin_fab
from fedimaging.federated.flower_http import NodeState
from fedimaging.federated.flower_internals import Envelope, MessageGone, MessageTooLarge, take_server_identity


@dataclass
class FakeLine:
    """A RunLine. `does[node](question)`: what comes of a message, None nothing; `online`: node -> session."""

    online: dict[int, str]
    does: dict[int, Callable[[Message], Message | None]]
    posted: list[tuple[int, float]] = field(default_factory=list)
    waiting: dict[str, Message] = field(default_factory=dict)
    fetched: list[int] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)
    bad_fetches: list[Exception] = field(default_factory=list)

    def nodes(self) -> list[NodeState]:
        self._meet()
        return [NodeState(node, b"", True, session) for node, session in self.online.items()]

    def push(self, messages: list[Message]) -> list[str]:
        self._meet()
        ids = []
        for message in messages:
            ids.append(f"m{len(self.posted)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.posted.append((message.metadata.dst_node_id, message.metadata.ttl))
            reply = self.does[message.metadata.dst_node_id](message)
            if reply is not None:
                self.waiting[ids[-1]] = reply
        return ids

    def replies(self, message_ids: dict[str, object]) -> list[Envelope]:
        self._meet()
        return [Envelope(self.waiting.pop(i), 100, ()) for i in list(message_ids) if i in self.waiting]

    def fetch(self, envelope: Envelope, largest: int) -> Message:
        if self.bad_fetches:
            raise self.bad_fetches.pop(0)
        self.fetched.append(envelope.head.metadata.src_node_id)
        return envelope.head

    def _meet(self) -> None:
        if self.trouble:
            raise self.trouble.pop(0)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes only by being asked for: a second each time somebody waits."""
    clock = [0.0]
    monkeypatch.setattr(deployed_grid.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(deployed_grid.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + max(1.0, seconds)))
    take_server_identity(1)


def answers(message: Message) -> Message:
    value = np.full(2, message.metadata.dst_node_id, np.float32)
    return Message(RecordDict({"update": ArrayRecord({"update": Array(value)})}), reply_to=message)


def silent(message: Message) -> None:
    return None


def sends(line: FakeLine, *nodes: int, timeout: float | None = None) -> list[Message]:
    grid = DeployedGrid(line, 1, 1000, lambda text: None)  # type: ignore[arg-type]
    content = RecordDict({"weights": ArrayRecord({"weights": Array(np.zeros(2, np.float32))})})
    return list(grid.send_and_receive([Message(content, node, "train") for node in nodes], timeout=timeout))


def sources(replies: list[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def lost(message: Message) -> Message:
    """What the server says of a message that died with its hospital."""
    reply = deployed_grid.flower.failed_reply(message, "gone")
    reply.metadata.__dict__["_src_node_id"] = deployed_grid.flower.SUPERLINK_NODE_ID
    return reply


def test_replies_come_in_the_order_of_the_messages_and_are_fetched_one_by_one() -> None:
    line = FakeLine({11: "a", 12: "a", 13: "a"}, dict.fromkeys((11, 12, 13), answers))
    grid = DeployedGrid(line, 1, 1000, lambda text: None)  # type: ignore[arg-type]
    content = RecordDict({"weights": ArrayRecord({"weights": Array(np.zeros(2, np.float32))})})
    replies = grid.send_and_receive([Message(content, node, "train") for node in (13, 11, 12)])
    assert next(iter(replies)).metadata.src_node_id == 13
    assert line.fetched == [13]
    assert sources(list(replies)) == [11, 12]


def test_a_hospital_that_comes_late_gets_its_message() -> None:
    line = FakeLine({11: "a"}, {11: answers, 12: answers})
    looks = iter(range(100))
    original = line.nodes
    line.nodes = lambda: (line.online.__setitem__(12, "a") if next(looks) == 3 else None, original())[1]  # type: ignore[method-assign]
    assert sources(sends(line, 11, 12)) == [11, 12]
    assert [node for node, _ in line.posted] == [11, 12]


@pytest.mark.parametrize("told", [False, True], ids=["it was back before anybody looked", "the server noticed"])
def test_a_hospital_that_died_with_its_message_gets_it_again(told: bool) -> None:
    def dies_once(message: Message) -> Message | None:
        if len(line.posted) > 1:
            return answers(message)
        line.online[11] = "b"  # it joins anew
        return lost(message) if told else None

    line = FakeLine({11: "a"}, {11: dies_once})
    assert sources(sends(line, 11)) == [11]
    assert [node for node, _ in line.posted] == [11, 11]


def test_a_hospital_that_stays_is_not_asked_twice() -> None:
    line = FakeLine({11: "a"}, {11: silent})
    assert sends(line, 11, timeout=60.0) == []
    assert len(line.posted) == 1


def test_after_the_deadline_those_that_answered_count_and_messages_expire_with_it() -> None:
    line = FakeLine({11: "a", 12: "a", 13: "a"}, {11: silent, 12: answers, 13: silent})
    assert sources(sends(line, 11, 12, 13, timeout=30.0)) == [12]
    assert [ttl for _, ttl in line.posted] == [30.0] * 3


@pytest.mark.parametrize(("code", "again"), [
    ("stopping", False), ("outside_hours", True), ("disk_full", True), ("budget_exceeded", None)])
def test_some_refusals_mean_later(code: str, again: bool | None) -> None:
    def refuses_once(message: Message) -> Message:
        if len(line.posted) > 1:
            return answers(message)
        return Message(wire.write_refusal("h", code), reply_to=message)

    line = FakeLine({11: "a"}, {11: refuses_once})
    replies = sends(line, 11, timeout=2000.0)
    if again is None:
        assert wire.refusal_of(replies[0].content) == code
    else:  # who stops is asked again when he is back, who sleeps is asked again later
        assert sources(replies) == ([11] if again else [])
        assert len(line.posted) == (2 if again else 1)


@pytest.mark.parametrize(("error", "posted"), [(LinkCut("died with it"), 2), (LinkDown("not reached"), 1)])
def test_a_reply_that_may_have_got_lost_with_the_servers_answer_is_asked_for_again(error: LinkDown, posted: int) -> None:
    line = FakeLine({11: "a"}, {11: answers})
    original, troubles = line.replies, [error]

    def lossy(message_ids: dict[str, object]) -> list[Envelope]:
        if not troubles:
            return original(message_ids)
        if isinstance(error, LinkCut):
            line.waiting.clear()
        raise troubles.pop()

    line.replies = lossy  # type: ignore[method-assign]
    assert sources(sends(line, 11)) == [11]
    assert len(line.posted) == posted


def test_the_operator_reads_who_is_asked_again_and_why() -> None:
    def refuses_twice(message: Message) -> Message:
        code = "disk_full" if len(line.posted) < 3 else ""
        return Message(wire.write_refusal("h", code), reply_to=message) if code else answers(message)

    line, said = FakeLine({11: "a"}, {11: refuses_twice}), list[str]()
    grid = DeployedGrid(line, 1, 1000, said.append, {11: "north"}.get)  # type: ignore[arg-type]
    content = RecordDict({"weights": ArrayRecord({"weights": Array(np.zeros(2, np.float32))})})
    assert sources(list(grid.send_and_receive([Message(content, 11, "train")]))) == [11]
    assert said == ["north says disk_full; it is asked again later"]
    assert len(line.posted) == 3


def test_a_reply_whose_parts_were_lost_is_asked_for_again_and_one_on_its_way_is_waited_for() -> None:
    line = FakeLine({11: "a"}, {11: answers}, bad_fetches=[LinkDown("on its way"), MessageGone("x")])
    assert sources(sends(line, 11)) == [11]
    assert len(line.posted) == 2


@pytest.mark.parametrize("error", [MessageTooLarge("10 GB"), ValueError("garbage")])
def test_a_reply_that_is_none_is_an_error_of_its_hospital_and_of_nobody_else(error: Exception) -> None:
    line = FakeLine({11: "a", 12: "a"}, {11: answers, 12: answers}, bad_fetches=[error])
    first, second = sends(line, 11, 12)
    assert first.has_error()
    assert sources([first, second]) == [11, 12]
    assert not second.has_error()


def test_a_server_that_is_away_is_waited_for() -> None:
    line = FakeLine({11: "a"}, {11: answers}, trouble=[LinkDown("restarting")] * 5)
    assert sources(sends(line, 11)) == [11]


def test_a_run_that_the_server_gave_up_is_lost() -> None:
    line = FakeLine({11: "a"}, {11: answers}, trouble=[LinkRefused(401, "who are you")])
    with pytest.raises(RunLost):
        sends(line, 11)


def test_no_two_messages_have_names_that_could_be_guessed() -> None:
    groups = set()

    def notes(message: Message) -> Message:
        groups.add(message.metadata.group_id)
        return answers(message)

    sends(FakeLine({11: "a", 12: "a"}, {11: notes, 12: notes}), 11, 12)
    assert len(groups) == 2
    assert all(len(group) == 32 for group in groups)


def test_the_app_that_a_run_carries_holds_no_code() -> None:
    packed, digest = thin_fab()
    with zipfile.ZipFile(BytesIO(packed)) as archive:
        assert archive.namelist() == ["pyproject.toml"]
    assert thin_fab() == (packed, digest)
