"""A hospital's runner against a server that says what a list says."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedimaging.errors import LedgerError, LinkCut, LinkDown, LinkRefused, LinkUntrusted, RunError
from fedimaging.federated import site_runner, wire
from fedimaging.federated.flower_internals import Envelope, MessageGone, MessageTooLarge, take_server_identity
from fedimaging.federated.site_runner import Joining, Work, run_site
from fedimaging.keys import make_key

APP = ClientApp()


@APP.train()
def _train(message: Message, context: Context) -> Message:
    return Message(RecordDict({"update": ArrayRecord({"update": Array(np.ones(2, np.float32))})}), reply_to=message)


class FakeLine:
    """A FleetLine. `script`: what each call of a name does next: a value, or an error; an error alone: always. Stops the
    runner where no message is left."""

    def __init__(self, stop: threading.Event, script: dict[str, Any]) -> None:
        self.stop, self.script, self.called, self.replies = stop, script, list[str](), list[Message]()

    def _next(self, name: str, otherwise: Any = None) -> Any:
        self.called.append(name)
        todo = self.script.get(name, [])
        if isinstance(todo, Exception):
            raise todo
        if not todo:
            return otherwise() if callable(otherwise) else otherwise
        value = todo.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    def activate(self) -> None:
        self._next("activate")

    def deactivate(self) -> None:
        self._next("deactivate")

    def beat(self) -> bool:
        return True

    def next(self) -> Envelope | None:
        envelope: Envelope | None = self._next("next", self.stop.set)
        return envelope

    def fetch(self, envelope: Envelope, largest: int) -> Message:
        message: Message = self._next("fetch", envelope.head)
        return message

    def reply(self, reply: Message, seconds: float) -> None:
        self._next("reply")
        self.replies.append(reply)

    def close(self) -> None:
        self.called.append("close")


class Ran:
    """What one run of the runner did."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **script: Any) -> None:
        self.stop, self.codes, self.said = threading.Event(), list[str](), list[str]()
        self.line = FakeLine(self.stop, script)
        self.largest: Callable[[], int] = lambda: 1000
        self.refuse: Callable[[str], None] = self.codes.append
        monkeypatch.setattr(site_runner, "FleetLine", lambda *_: self.line)
        monkeypatch.setattr(site_runner, "pace", lambda *_, **__: 0.0)
        make_key(tmp_path / "node.key", tmp_path / "node.pub")
        self.key = tmp_path / "node.key"

    def go(self) -> "Ran":
        work = Work(APP, lambda: self.largest(), lambda code: self.refuse(code), self.said.append)
        run_site(Joining("north", "server:1", Path("ca.crt"), self.key), work, self.stop)
        return self

    def answers(self) -> list[str]:
        """The code of each reply, `update` for a real one."""
        return [wire.refusal_of(reply.content) or next(iter(reply.content)) for reply in self.line.replies]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    return lambda **script: Ran(tmp_path, monkeypatch, **script)


def waiting(kind: str = "train", size: int = 100, objects: int = 0) -> Envelope:
    """A message of this kind, or the head of one of so many objects."""
    take_server_identity(1)
    message = Message(RecordDict({"instruction": ConfigRecord({"study": "x"})}), 12, kind, ttl=60.0)
    message.metadata.__dict__["_message_id"] = "m"
    return Envelope(message, size, tuple(str(k) for k in range(objects)))


def test_it_joins_answers_and_leaves(ran: Callable[..., Ran]) -> None:
    done = ran(next=[None, waiting(), None, waiting()]).go()
    assert done.answers() == ["update", "update"]
    assert [reply.metadata.reply_to_message_id for reply in done.line.replies] == ["m", "m"]
    assert done.line.called[0] == "activate"
    assert done.line.called[-2:] == ["deactivate", "close"]
    assert done.said == ["north has joined server:1."]
    assert done.codes == []


@pytest.mark.parametrize("large", [{"size": 1001}, {"objects": 70}], ids=["bytes", "objects"])
def test_what_no_approved_study_needs_is_refused_unread(large: dict[str, int], ran: Callable[..., Ran]) -> None:
    done = ran(next=[waiting(**large)]).go()
    assert done.answers() == done.codes == ["message_too_large"]
    assert "fetch" not in done.line.called


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (MessageTooLarge("while it was read"), "message_too_large"), (ValueError("garbage"), "bad_message"),
        (MessageGone("m"), "error"),
    ],
)
def test_what_is_no_message_is_refused_with_a_code(trouble: Exception, code: str, ran: Callable[..., Ran]) -> None:
    done = ran(next=[waiting()], fetch=[trouble]).go()
    assert done.answers() == done.codes == [code]


@pytest.mark.parametrize("kind", ["query", "train.other", "evaluate", "system"])
def test_a_message_of_an_unknown_kind_is_refused(kind: str, ran: Callable[..., Ran]) -> None:
    done = ran(next=[waiting(kind)]).go()
    assert done.answers() == done.codes == ["bad_message"]


def test_a_refusal_leaves_also_where_it_cannot_be_logged(ran: Callable[..., Ran]) -> None:
    case = ran(next=[waiting("system")])

    def full(code: str) -> None:
        raise RunError("no space left on /data/patient-17")

    case.refuse = full
    assert case.go().answers() == ["bad_message"]


def test_where_nobody_knows_what_is_approved_everything_is_refused(ran: Callable[..., Ran]) -> None:
    case = ran(next=[waiting()])

    def altered() -> int:
        raise LedgerError("approvals.jsonl was altered")

    case.largest = altered
    assert case.go().answers() == ["ledger"]


def test_a_broken_network_costs_time_and_nothing_else(ran: Callable[..., Ran]) -> None:
    down, bad = LinkDown("no route"), LinkUntrusted("somebody else answers")
    done = ran(
        activate=[down, bad, LinkRefused(412, "not yet")], next=[down, waiting()], fetch=[down, bad], reply=[down, down]).go()
    assert done.answers() == ["update"]
    assert [done.line.called.count(name) for name in ("activate", "fetch", "reply")] == [4, 3, 3]
    assert [text for text in done.said if "20 seconds" in text] == [done.said[2]]
    assert done.said.count("no route") == 4  # told once each time it begins


def test_somebody_elses_certificate_is_in_the_log_once_each_time_it_is_met(ran: Callable[..., Ran]) -> None:
    bad = LinkUntrusted("somebody else answers")
    done = ran(activate=[bad, bad, bad], next=[waiting(), bad, waiting()], reply=[LinkDown("away"), bad]).go()
    assert done.answers() == ["update", "update"]
    assert done.codes == ["server_untrusted"] * 3  # when joining, when replying, when asking


def test_a_certificate_that_is_wrong_when_asking_and_when_joining_anew_is_noted_once(ran: Callable[..., Ran]) -> None:
    bad = LinkUntrusted("somebody else answers")
    done = ran(activate=[None, bad, bad], next=[bad, waiting()]).go()
    assert done.answers() == ["update"]
    assert done.codes == ["server_untrusted"]
    assert done.said.count("somebody else answers") == 1


def test_a_run_that_ended_meanwhile_is_let_go(ran: Callable[..., Ran]) -> None:
    ended = LinkRefused(403, "not running")
    done = ran(next=[waiting(), waiting(), waiting()], fetch=[ended], reply=[ended]).go()
    assert done.answers() == ["update"]


def test_a_hospital_that_the_server_forgot_joins_again(ran: Callable[..., Ran]) -> None:
    done = ran(next=[LinkRefused(401, "who are you"), waiting()], deactivate=[LinkDown("gone")]).go()
    assert done.line.called.count("activate") == 2
    assert done.answers() == ["update"]


@pytest.mark.parametrize(("error", "joined"), [(LinkCut("cut off"), 2), (LinkDown("no route"), 1)])
def test_a_message_that_may_have_got_lost_with_an_answer_is_got_by_joining_anew(
    error: LinkDown, joined: int, ran: Callable[..., Ran]
) -> None:
    done = ran(next=[error, error, None, waiting()]).go()
    assert done.line.called.count("activate") == joined
    assert done.line.called.count("deactivate") == joined
    assert done.answers() == ["update"]


def test_what_was_trained_is_kept_while_the_clock_is_wrong(ran: Callable[..., Ran]) -> None:
    wrong = LinkRefused(401, "no; this machine's clock is +600 s off the server's, set it")
    done = ran(next=[waiting()], reply=[wrong, wrong]).go()
    assert done.answers() == ["update"]
    assert [text for text in done.said if "clock is +600 s off" in text] == [done.said[1]]
    assert done.said[-1] == "the server is there again."


@pytest.mark.parametrize("step", ["activate", "next", "fetch", "reply"])
def test_it_stops_wherever_the_server_is_away(step: str, ran: Callable[..., Ran]) -> None:
    case = ran(**({"next": [waiting()]} | {step: LinkDown("away")}))
    threading.Timer(0.05, case.stop.set).start()
    assert case.go().answers() == []


def test_a_key_that_is_none_is_said_before_anything_else(ran: Callable[..., Ran]) -> None:
    case = ran()
    case.key.write_text("scribble")
    with pytest.raises(RunError, match="cannot be read"):
        case.go()
    assert case.line.called == []
