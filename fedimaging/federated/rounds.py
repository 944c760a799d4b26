"""The server's side of one study: a round as a step from state to state, and the loop around it.

The loop is ours and not Flower's, because that one cannot start at round r, has no minimum of replies, keeps all
replies in memory and calls a run without any reply a success.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedimaging.aggregation.cohort import cohort
from fedimaging.aggregation.mean import StreamingMean, l2_norm
from fedimaging.aggregation.server_optimizers import Moments, first_moments, server_step
from fedimaging.errors import RunError, SiteRefusal
from fedimaging.federated import wire
from fedimaging.results import RoundResult, SiteEvaluation, SiteUpdate
from fedimaging.site.site import TrainInstruction
from fedimaging.study.schema import Study


@dataclass(frozen=True)
class ServerState:
    """All that a resumed run needs: the round done, shared weights float32 (P,), and the server's moments."""

    round: int
    weights: np.ndarray
    moments: Moments = field(default_factory=dict)
    recent: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Federation:
    """What the server knows of a study: who trains, who only evaluates, and public constants of each.

    `public_weights`: the fixed weight of each training hospital in the mean. `planned_epsilon(site, round)`: what
    the study's public numbers imply that the site has spent after so many rounds; NaN without privacy.
    """

    study: Study
    train_sites: tuple[str, ...]
    evaluate_sites: tuple[str, ...]
    public_weights: Mapping[str, float]
    model_fingerprint: str
    planned_epsilon: Callable[[str, int], float]
    progress: Callable[[str, Mapping[str, object]], None]
    total_metrics: Callable[[Iterable[SiteEvaluation]], dict[str, float]]


def first_state(study: Study, weights: np.ndarray) -> ServerState:
    """The state before round 1."""
    return ServerState(0, weights, first_moments(study.federation, weights.size))


def enrol(grid: Grid, federation: Federation) -> dict[str, int]:
    """Ask every connected node for its card; returns site name -> node id of the willing.

    Errors: RunError where two nodes give one name, a site has another model, or a site the study needs is missing.
    """
    nodes: dict[str, int] = {}
    wanted = {*federation.train_sites, *federation.evaluate_sites}
    question = wire.write_enrolment(federation.study.fingerprint)
    messages = [Message(question, node, "query") for node in _connected(grid, len(wanted))]
    for reply in grid.send_and_receive(messages, timeout=federation.study.federation.deadline_seconds):
        if reply.has_error() or wire.refusal_of(reply.content) is not None:
            continue
        card = wire.read_card(reply.content)
        if card.site in nodes:
            raise RunError(f"two nodes say that they are site {card.site!r}; give each hospital its own name.")
        if card.willing and card.site in wanted:
            if card.model != federation.model_fingerprint:
                raise RunError(f"site {card.site!r} builds another model than the server; install the same version.")
            nodes[card.site] = reply.metadata.src_node_id
    missing = sorted(wanted - nodes.keys())
    if missing:
        raise RunError(f"{len(missing)} of {len(wanted)} hospitals did not enrol: {', '.join(missing[:5])}.")
    return nodes


def _connected(grid: Grid, wanted: int, patience_seconds: float = 120.0) -> list[int]:
    """The ids of connected nodes, once there are as many as wanted or patience ends (Ray registers them late)."""
    until = time.monotonic() + patience_seconds
    while len(nodes := list(grid.get_node_ids())) < wanted and time.monotonic() < until:
        time.sleep(0.1)
    return nodes


def run_round(grid: Grid, federation: Federation, nodes: Mapping[str, int], state: ServerState) -> tuple[
    ServerState, RoundResult, list[SiteEvaluation]
]:
    """One round: train at the cohort, average, step; then evaluate where the study says so. The last round is evaluated
    in full, with the final weights.

    Error: RunError when fewer hospitals than `minimum_replies` sent a usable update; the state stands as it was.
    """
    spec, number, began = federation.study.federation, state.round + 1, time.monotonic()
    chosen = cohort(federation.train_sites, spec.sites_per_round, seed=federation.study.seed, round=number)
    refused: dict[str, str] = {}
    mean = StreamingMean()
    done = []
    for update in _updates(grid, federation, nodes, chosen, TrainInstruction(
        federation.study.fingerprint, number, state.weights), refused):
        mean.add(update.delta, federation.public_weights[update.site])
        done.append(update.site)
        federation.progress("trained", {"round": number, "site": update.site, "done": len(done), "of": len(chosen)})
    if mean.count < spec.minimum_replies:
        codes = ", ".join(f"{site}: {code}" for site, code in sorted(refused.items())[:5])
        raise RunError(
            f"round {number}: {mean.count} of {len(chosen)} hospitals sent an update, at least {spec.minimum_replies} "
            f"are needed ({codes}); see the audit log of these hospitals."
        )
    update_mean = mean.result()
    weights, moments = server_step(state.weights, update_mean, state.moments, spec)
    recent = (*state.recent, weights)[-spec.average_last :] if spec.average_last > 1 else ()
    new = ServerState(number, weights, moments, recent)
    trained = time.monotonic()
    evaluations = _evaluate_if_due(grid, federation, nodes, new)
    result = RoundResult(
        round=number,
        sites=tuple(done),
        refused=refused,
        metrics=federation.total_metrics(evaluations),
        site_metrics={e.site: {"loss": e.loss, **e.metrics} for e in evaluations},
        epsilon={site: federation.planned_epsilon(site, number) for site in done},
        update_norm=l2_norm(update_mean),
        seconds={"training": trained - began, "evaluation": time.monotonic() - trained},
        bytes_per_site=2 * state.weights.nbytes,
    )
    return new, result, evaluations


def final_weights(state: ServerState) -> np.ndarray:
    """The model to keep: the last round's, or the mean of the last `average_last` rounds' (free post-processing)."""
    if not state.recent:
        return state.weights
    mean: np.ndarray = np.stack(state.recent).mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def evaluate_everywhere(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], round: int, weights: np.ndarray, *, final: bool,
    sites: tuple[str, ...] | None = None,
) -> list[SiteEvaluation]:
    """The evaluation of these weights at `sites` (default: every evaluating hospital), in name order; hospitals that
    refuse are left out."""
    kind = "evaluate.final" if final else "evaluate"
    content = wire.write_instruction(TrainInstruction(federation.study.fingerprint, round, weights))
    evaluations = []
    for reply in _ask(grid, federation, nodes, federation.evaluate_sites if sites is None else sites, kind, content):
        if reply.has_error() or wire.refusal_of(reply.content) is not None:
            continue
        evaluations.append(wire.read_evaluation(reply.content, round=round))
    return sorted(evaluations, key=lambda e: e.site)


def _evaluate_if_due(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], state: ServerState
) -> list[SiteEvaluation]:
    every = federation.study.evaluation.every
    if state.round == federation.study.federation.rounds:
        return evaluate_everywhere(grid, federation, nodes, state.round, final_weights(state), final=True)
    if not every or state.round % every:
        return []
    return evaluate_everywhere(grid, federation, nodes, state.round, state.weights, final=False)


def _updates(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], chosen: list[str], instruction: TrainInstruction,
    refused: dict[str, str],
) -> Iterator[SiteUpdate]:
    """Usable updates in site-name order (so that sums do not depend on arrival); codes of the others in `refused`."""
    content = wire.write_instruction(instruction)
    names = {nodes[site]: site for site in chosen}
    waiting = set(chosen)
    for reply in _ask(grid, federation, nodes, chosen, "train", content):
        site = names.get(reply.metadata.src_node_id, "")
        waiting.discard(site)
        try:
            yield checked_update(reply, site, instruction)
        except SiteRefusal as refusal:
            refused[site] = refusal.code
            federation.progress("refused", {"round": instruction.round, "site": site, "code": refusal.code})
    refused.update(dict.fromkeys(waiting, "no_reply"))


def checked_update(reply: Message, site: str, instruction: TrainInstruction) -> SiteUpdate:
    """The update in a reply that should be this site's to this instruction. Error: SiteRefusal with a code."""
    if reply.has_error():
        raise SiteRefusal("error")
    code = wire.refusal_of(reply.content)
    if code is not None:
        raise SiteRefusal(code)
    update = wire.read_update(reply.content, round=instruction.round, size=instruction.weights.size)
    if update.site != site:
        raise SiteRefusal("bad_message")
    return update


def _ask(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], sites: Iterable[str], kind: str, content: RecordDict
) -> Iterable[Message]:
    """Send one content to these sites. The in-process grid yields lazily in the order of the messages; other grids
    return a list in order of arrival, which is brought into that order here."""
    messages = [Message(content, nodes[site], kind) for site in sorted(sites) if site in nodes]
    order = {nodes[site]: place for place, site in enumerate(sorted(s for s in sites if s in nodes))}
    replies = grid.send_and_receive(messages, timeout=federation.study.federation.deadline_seconds)
    if isinstance(replies, list):
        return sorted(replies, key=lambda reply: order.get(reply.metadata.src_node_id, len(order)))
    return replies
