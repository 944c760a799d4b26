"""A round against hospitals that lie, over a grid whose replies are written by hand."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedimaging.federated import wire
from fedimaging.federated.flower_internals import failed_reply, take_server_identity
from fedimaging.federated.rounds import (
    Federation,
    ServerState,
    TooFewReplies,
    calibrate_everywhere,
    evaluate_everywhere,
    final_weights,
    run_round,
)
from fedimaging.results import SiteCalibration, SiteEvaluation, SiteUpdate
from fedimaging.study.schema import Study

NODES = {"north": 11, "south": 12, "west": 13}
Answer = Callable[[int], RecordDict | None]


@dataclass
class HandGrid:
    """`answers[node](round)`: the content of its reply, None for none, an empty record for a crash."""

    answers: dict[int, Answer]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None) -> Iterator[Message]:
        for message in messages:
            content = self.answers[message.metadata.dst_node_id](int(message.content.config_records["instruction"]["round"]))  # type: ignore[arg-type]
            if content is not None:
                yield Message(content, reply_to=message) if content else failed_reply(message, "died")


def update(site: str, value: float, size: int = 2, round: int | None = None) -> Answer:
    return lambda asked: wire.write_update(SiteUpdate(site, round or asked, np.full(size, value, np.float32)))


def evaluation(site: str, loss: float = 1.0, **metrics: float) -> Answer:
    return lambda asked: wire.write_evaluation(SiteEvaluation(site, asked, loss, 10, metrics))


@pytest.fixture
def federation(tiny_study: Callable[..., Study]) -> Federation:
    take_server_identity(1)
    study = tiny_study("federation.minimum_replies=2", "evaluation.every=0", "federation.rounds=9")
    return Federation(
        study=study, train_sites=tuple(NODES), evaluate_sites=tuple(NODES), public_weights=dict.fromkeys(NODES, 1.0),
        model_fingerprint="m", planned_epsilon=lambda site, round: 0.0, progress=lambda kind, facts: None,
        total_metrics=lambda found: {}, maximum_update_norm=10.0,
    )


def trained(federation: Federation, answers: dict[int, Answer], nodes: dict[str, int] = NODES) -> Any:
    return run_round(HandGrid(answers), federation, nodes, ServerState(0, np.zeros(2, np.float32)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (update("south", 1.0), "bad_message"),  # in another's name
        (update("north", 1.0, round=2), "wrong_round"), (update("north", 1.0, size=3), "wrong_shape"),
        (update("north", np.nan), "update_not_finite"), (update("north", np.inf), "update_not_finite"),
        (update("north", 8.0), "update_too_large"), (lambda _: wire.write_refusal("north", "data"), "data"),
        (lambda _: wire.write_refusal("north", "patient 17 has cancer"), "error"), (lambda _: RecordDict(), "error"),
        (lambda _: None, "no_reply"),
    ],
)
def test_a_reply_that_is_no_update_is_left_out_with_its_code(lie: Answer, code: str, federation: Federation) -> None:
    state, result, _ = trained(federation, {11: lie, 12: update("south", 1.0), 13: update("west", 3.0)})
    assert result.refused == {"north": code}
    assert result.sites == ("south", "west")
    np.testing.assert_array_equal(state.weights, np.full(2, 2.0, np.float32))


def test_an_update_at_the_bound_counts(federation: Federation) -> None:
    large = float(np.float32(10.0 / np.sqrt(2)) * np.float32(0.999999))
    assert trained(federation, {11: update("north", large), 12: update("south", 1.0), 13: update("west", 1.0)})[1].refused == {}


def test_a_hospital_that_is_not_there_is_missing_and_the_others_train(federation: Federation) -> None:
    there = {name: node for name, node in NODES.items() if name != "west"}
    _, result, _ = trained(federation, {11: update("north", 1.0), 12: update("south", 1.0)}, there)
    assert result.refused == {"west": "no_reply"}


def test_too_few_replies_end_the_round_and_say_why_each_is_missing(federation: Federation) -> None:
    with pytest.raises(TooFewReplies, match="1 of 3 hospitals") as failed:
        trained(federation, {11: update("north", 1.0), 12: lambda _: None, 13: lambda _: wire.write_refusal("west", "privacy")})
    assert failed.value.refused == {"south": "no_reply", "west": "privacy"}


def test_an_evaluation_counts_under_its_own_name_only(federation: Federation) -> None:
    answers = {11: evaluation("south", auroc=1.0), 12: evaluation("south", auroc=0.5), 13: lambda _: wire.write_card(
        wire.SiteCard("west", "m", True))}
    grid: Any = HandGrid(answers)
    found = evaluate_everywhere(grid, federation, NODES, 1, np.zeros(2, np.float32), final=False)
    assert [(one.site, one.metrics) for one in found] == [("south", {"auroc": 0.5})]


def test_the_running_mean_of_the_models_is_the_final_one(federation: Federation) -> None:
    spec = federation.study.federation.model_copy(update={"model_ema": 0.75})
    smooth = replace(federation, study=federation.study.model_copy(update={"federation": spec}))
    state = ServerState(0, np.zeros(2, np.float32))
    answers = {node: update(site, 4.0) for site, node in NODES.items()}
    for _ in range(3):  # the rounds' models are 4, 8, 12
        state, _, _ = run_round(HandGrid(answers), smooth, NODES, state)  # type: ignore[arg-type]
    assert state.weights.tolist() == [12.0, 12.0]
    assert len(state.recent) == 1
    assert final_weights(state).tolist() == [6.75, 6.75]  # 4; 4 + (8 - 4) / 4 = 5; 5 + (12 - 5) / 4


def calibration(site: str, value: float, round: int | None = None) -> Answer:
    sums = np.full(9, value, np.float32)
    return lambda asked: wire.write_calibration(SiteCalibration(site, round or asked, sums, 0.0))


def test_training_hospitals_calibrate_under_their_own_names_and_others_say_why_not(federation: Federation) -> None:
    nodes = NODES | {"held out": 14, "east": 15}
    asked = replace(federation, train_sites=("east", "north", "south", "west"), evaluate_sites=tuple(nodes))
    grid: Any = HandGrid({
        11: calibration("south", 1.0), 12: calibration("south", 2.0), 13: lambda _: wire.write_refusal("west", "budget_exceeded"),
        14: calibration("held out", 4.0), 15: lambda _: None,
    })  # fmt: skip
    found, refused = calibrate_everywhere(grid, asked, nodes, 9, np.zeros(2, np.float32))
    assert [(one.site, one.sums[0]) for one in found] == [("south", 2.0)]
    assert refused == {"north": "bad_message", "west": "budget_exceeded", "east": "no_reply"}
