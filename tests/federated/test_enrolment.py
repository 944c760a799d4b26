from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from flwr.app import Message

from fedimaging.federated import enrolment, wire
from fedimaging.federated.enrolment import gather
from fedimaging.federated.flower_internals import failed_reply, take_server_identity
from fedimaging.federated.rounds import Federation

NAMES = {11: "north", 12: "south", 13: "west", 14: "stranger", 15: None}


@dataclass
class FakeGrid:
    """Nodes and what each answers to the question for its card; a list answers one after the other."""

    cards: dict[int, Any]
    asked: list[int] = field(default_factory=list)
    later: dict[int, Any] = field(default_factory=dict)

    def get_node_ids(self) -> list[int]:
        online = list(self.cards)
        self.cards |= self.later
        return online

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            card = self.cards[node].pop(0) if isinstance(self.cards[node], list) else self.cards[node]
            if card is None:
                continue
            yield failed_reply(message, "died") if card == "died" else Message(card, reply_to=message)


def card(site: str, model: str = "m", willing: bool = True) -> Any:
    return wire.write_card(wire.SiteCard(site, model, willing))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Time passes only by waiting; returns what was told."""
    take_server_identity(1)
    clock = [0.0]
    monkeypatch.setattr(enrolment.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(enrolment.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + 10.0))
    return []


def federation(events: list[tuple[str, dict[str, Any]]]) -> Any:
    class Study:
        fingerprint = "f" * 64

    return Federation(
        study=Study(), train_sites=("north", "south"), evaluate_sites=("north", "south", "west"), public_weights={},  # type: ignore[arg-type]
        model_fingerprint="m", planned_epsilon=lambda site, round: 0.0, total_metrics=lambda found: {},
        progress=lambda kind, facts: events.append((kind, dict(facts))), identify=NAMES.get,
    )


def test_all_hospitals_of_the_study_are_waited_for_and_nobody_else_is_asked(events: Any) -> None:
    grid = FakeGrid({11: card("north"), 14: card("stranger"), 15: card("nobody")}, later={12: card("south"), 13: card("west")})
    found = gather(grid, federation(events), {}, patience_seconds=1e9, enough=1)  # type: ignore[arg-type]
    assert found == {"north": 11, "south": 12, "west": 13}
    assert sorted(grid.asked) == [11, 12, 13]
    assert events == [("waiting", {"missing": ["south", "west"], "away": ["south", "west"]})]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (card("south"), "another_name"), (card("north", model="n"), "another_model"),
        (card("north", willing=False), "not_willing"),
        (wire.write_refusal("", "study_not_approved"), "study_not_approved"), (wire.write_enrolment("x"), "bad_message"),
        ("died", "error"),
    ],
)
def test_a_hospital_that_does_not_take_part_is_named_with_its_reason(answer: Any, reason: str, events: Any) -> None:
    grid = FakeGrid({11: [answer, card("north")], 12: card("south"), 13: card("west")})
    found = gather(grid, federation(events), {}, patience_seconds=1e9, enough=1)  # type: ignore[arg-type]
    assert found == {"north": 11, "south": 12, "west": 13}
    assert events[0] == ("not_enrolled", {"site": "north", "reason": reason})
    assert events[1] == ("waiting", {"missing": ["north"], "away": []})
    assert grid.asked.count(11) == 2
    assert grid.asked.count(12) == 1
    assert sum(kind == "waiting" for kind, _ in events) >= 5  # it is not asked at every look


def test_once_patience_ends_as_many_as_a_round_needs_are_enough(events: Any) -> None:
    grid = FakeGrid({12: card("south"), 13: card("west")})
    assert gather(grid, federation(events), {}, patience_seconds=30.0, enough=1) == {"south": 12, "west": 13}  # type: ignore[arg-type]


def test_hospitals_that_only_evaluate_do_not_count_as_enough(events: Any) -> None:
    grid = FakeGrid({13: card("west")}, later={})
    original = grid.get_node_ids

    def joins() -> list[int]:
        if len([kind for kind, _ in events if kind == "waiting"]) == 9:
            grid.cards[12] = card("south")
        return original()

    grid.get_node_ids = joins  # type: ignore[method-assign]
    assert gather(grid, federation(events), {}, patience_seconds=30.0, enough=1) == {"south": 12, "west": 13}  # type: ignore[arg-type]
    assert len(events) == 9


def test_a_latecomer_joins_between_rounds_and_no_round_waits_for_it(events: Any) -> None:
    grid = FakeGrid({11: card("north"), 12: card("south")})
    known = {"north": 11, "south": 12}
    assert gather(grid, federation(events), known, patience_seconds=0.0, enough=1) == known  # type: ignore[arg-type]
    assert grid.asked == []
    grid.cards[13] = card("west")
    assert gather(grid, federation(events), known, patience_seconds=0.0, enough=1) == {**known, "west": 13}  # type: ignore[arg-type]
    assert grid.asked == [13]
