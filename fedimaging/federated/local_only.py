"""The baseline in which every hospital trains alone: the same messages, the same steps, no averaging between them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedimaging.aggregation.server_optimizers import server_step
from fedimaging.errors import SiteRefusal
from fedimaging.federated import wire
from fedimaging.federated.enrolment import enrol
from fedimaging.federated.rounds import (
    Federation,
    ServerState,
    checked_update,
    evaluate_everywhere,
    final_weights,
    first_state,
)
from fedimaging.results import SiteEvaluation
from fedimaging.site.site import TrainInstruction

_EVALUATE_EVERYWHERE = 20  # with more hospitals than this a local model is tested at home and at held-out ones only


@dataclass(frozen=True)
class LocalModel:
    """One hospital's own model: its weights and what the evaluating hospitals say of it. `refused`: a code, or None."""

    site: str
    weights: np.ndarray
    evaluations: list[SiteEvaluation]
    refused: str | None


def build_local_only_app(
    federation: Federation, weights: np.ndarray, *, at_once: int,
    on_site: Callable[[LocalModel], None],
) -> ServerApp:
    """A ServerApp that trains each hospital alone, `at_once` side by side, and hands over each model.

    Memory holds `at_once` models, however many hospitals there are.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = enrol(grid, federation)
        for first in range(0, len(federation.train_sites), at_once):
            group = federation.train_sites[first : first + at_once]
            states = {site: first_state(federation.study, weights) for site in group}
            refused = _train_group(grid, federation, nodes, states)
            for site in group:
                on_site(_evaluated(grid, federation, nodes, site, states[site], refused.get(site)))

    return app


def _train_group(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], states: dict[str, ServerState]
) -> dict[str, str]:
    """Advance each site's own state through all rounds, in place; a site that refuses stays where it is."""
    refused: dict[str, str] = {}
    for number in range(1, federation.study.federation.rounds + 1):
        for site, delta in _round(grid, federation, nodes, states, number, refused):
            state, scaled = states[site], delta.astype(np.float64) * federation.update_scale([site])
            new, moments = server_step(state.weights, scaled, state.moments, federation.study.federation)
            keep = federation.study.federation.average_last
            recent = (*state.recent, new)[-keep:] if keep > 1 else ()
            states[site] = ServerState(number, new, moments, recent)
        federation.progress("trained", {"round": number, "site": "", "done": 1, "of": 1})
    return refused


def _round(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], states: Mapping[str, ServerState], number: int,
    refused: dict[str, str],
) -> Iterator[tuple[str, np.ndarray]]:
    names = {nodes[site]: site for site in states if site not in refused}
    instructions = {
        node: TrainInstruction(federation.study.fingerprint, number, states[site].weights) for node, site in names.items()
    }
    messages = [Message(wire.write_instruction(instructions[node]), node, "train") for node in names]
    for reply in grid.send_and_receive(messages):
        site = names[reply.metadata.src_node_id]
        try:
            yield site, checked_update(reply, site, instructions[reply.metadata.src_node_id]).delta
        except SiteRefusal as refusal:
            refused[site] = refusal.code


def _evaluated(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], site: str, state: ServerState, refused: str | None
) -> LocalModel:
    elsewhere = set(federation.evaluate_sites) - set(federation.train_sites)
    everywhere = len(federation.evaluate_sites) <= _EVALUATE_EVERYWHERE
    chosen = federation.evaluate_sites if everywhere else tuple(sorted({site, *elsewhere} & set(federation.evaluate_sites)))
    weights = final_weights(state)
    found = evaluate_everywhere(grid, federation, nodes, state.round, weights, final=True, sites=chosen)
    return LocalModel(site, weights, found, refused)
