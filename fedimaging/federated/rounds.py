"""The server's side of one study: a round as a step from state to state, and the loop around it.

The loop is ours and not Flower's, because that one cannot start at round r, has no minimum of replies, keeps all
replies in memory and calls a run without any reply a success.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedimaging.aggregation.cohort import cohort
from fedimaging.aggregation.fairness import Factors, next_factors, risks_of, weighed
from fedimaging.aggregation.mean import StreamingMean, l2_norm
from fedimaging.aggregation.noise_limit import update_scale
from fedimaging.aggregation.server_optimizers import Moments, first_moments, server_step
from fedimaging.aggregation.site_privacy import PrivateMean
from fedimaging.errors import RunError, SiteRefusal
from fedimaging.federated import wire
from fedimaging.results import RoundResult, SiteCalibration, SiteEvaluation, SiteUpdate
from fedimaging.site.site import TrainInstruction
from fedimaging.study.schema import FederationSpec, Study


@dataclass(frozen=True)
class ServerState:
    """All that a resumed run needs: the round done, shared weights float32 (P,), the server's moments, and what fairness
    multiplies each hospital's public weight by (`aggregation/fairness.py`)."""

    round: int
    weights: np.ndarray
    moments: Moments = field(default_factory=dict)
    recent: tuple[np.ndarray, ...] = ()
    factors: Factors = field(default_factory=dict)


@dataclass(frozen=True)
class Federation:
    """What the server knows of a study: who trains, who only evaluates, and public constants of each.

    `public_weights`: the fixed weight of each training hospital in the mean. `planned_epsilon(site, round)`: what
    the study's public numbers imply that the site has spent after so many rounds; NaN without privacy, or unknown.
    `identify(node)`: the site whose registered key the node has, None for a node of nobody in this study; in a simulation
    (None) nodes are believed. `maximum_update_norm`: a longer update is refused. `mean_for(round, asked)`: the mean of a
    round's updates, where the study has site_privacy (`site_privacy.py`), or where a baseline leaves it out. `update_noise`: of
    each training hospital, the deviation of the noise in its update per coordinate; for `federation.noise_limit`.
    """

    study: Study
    train_sites: tuple[str, ...]
    evaluate_sites: tuple[str, ...]
    public_weights: Mapping[str, float]
    model_fingerprint: str
    planned_epsilon: Callable[[str, int], float]
    progress: Callable[[str, Mapping[str, object]], None]
    total_metrics: Callable[[Iterable[SiteEvaluation]], dict[str, float]]
    identify: Callable[[int], str | None] | None = None
    maximum_update_norm: float = math.inf
    mean_for: Callable[[int, int], StreamingMean | PrivateMean] | None = None
    update_noise: Mapping[str, float] = field(default_factory=dict)

    def update_scale(self, sites: Collection[str], weights: Mapping[str, float] | None = None) -> float:
        """What the mean update of these hospitals is multiplied by; see `noise_limit.py`. weights: None for the public ones."""
        given = self.public_weights if weights is None else weights
        return update_scale(self.study.federation.noise_limit, self.update_noise, given, sites)


class TooFewReplies(RunError):
    """A round with fewer usable updates than the study wants. `refused`: the code of each hospital that sent none."""

    def __init__(self, message: str, refused: Mapping[str, str]) -> None:
        super().__init__(message)
        self.refused = refused


def first_state(study: Study, weights: np.ndarray) -> ServerState:
    """The state before round 1."""
    return ServerState(0, weights, first_moments(study.federation, weights.size))


def run_round(grid: Grid, federation: Federation, nodes: Mapping[str, int], state: ServerState) -> tuple[
    ServerState, RoundResult, list[SiteEvaluation]
]:
    """One round: train at the cohort, average, step; then evaluate where the study says so. The last round is evaluated
    in full, with the final weights.

    Error: TooFewReplies when fewer hospitals than `minimum_replies` sent a usable update; the state stands as it was.
    """
    spec, number, began = federation.study.federation, state.round + 1, time.monotonic()
    chosen = cohort(federation.train_sites, spec.sites_per_round, seed=federation.study.seed, round=number)
    refused: dict[str, str] = {}
    mean, weight_of = _mean_of(federation, number, len(chosen)), weighed(federation.public_weights, state.factors)
    done = []
    for update in _updates(grid, federation, nodes, chosen, TrainInstruction(
        federation.study.fingerprint, number, state.weights), refused):
        mean.add(update.delta, weight_of[update.site])
        done.append(update.site)
        federation.progress("trained", {"round": number, "site": update.site, "done": len(done), "of": len(chosen)})
        del update  # or it would be held while the next hospital trains
    needed = min(spec.minimum_replies, len(chosen))  # a baseline has one trainer; a study with fewer hospitals is refused before
    if mean.count < needed:
        codes = ", ".join(f"{site}: {code}" for site, code in sorted(refused.items())[:5])
        raise TooFewReplies(
            f"round {number}: {mean.count} of {len(chosen)} hospitals sent an update, at least {needed} "
            f"are needed ({codes}); see the audit log of these hospitals.", refused,
        )
    update_mean = mean.result()
    update_mean *= federation.update_scale(done, weight_of)
    weights, moments = server_step(state.weights, update_mean, state.moments, spec)
    new = ServerState(number, weights, moments, _recent(state, weights, spec))
    trained = time.monotonic()
    evaluations = _evaluate_if_due(grid, federation, nodes, new)
    new = replace(new, factors=_factors(federation, state.factors, evaluations))
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
        weights={site: weight_of[site] for site in done} if state.factors else {},
    )
    return new, result, evaluations


def _factors(federation: Federation, before: Factors, evaluations: list[SiteEvaluation]) -> Factors:
    """For the next round, from what the hospitals let leave of this round's evaluation."""
    metric = "dice" if federation.study.task.kind == "segmentation" else "auroc"
    return next_factors(
        federation.study.federation.fairness, before, risks_of(evaluations, metric), federation.public_weights
    )


def _recent(state: ServerState, weights: np.ndarray, spec: FederationSpec) -> tuple[np.ndarray, ...]:
    """What the final model is the mean of: the last models, or the one running mean; nothing where neither is asked for."""
    if spec.model_ema > 0:
        before = state.recent[0] if state.recent else weights
        return (before + np.float32(1 - spec.model_ema) * (weights - before),)
    return (*state.recent, weights)[-spec.average_last :] if spec.average_last > 1 else ()


def _mean_of(federation: Federation, round: int, asked: int) -> StreamingMean | PrivateMean:
    if federation.mean_for is not None:
        return federation.mean_for(round, asked)
    if federation.study.federation.site_privacy is not None:
        raise RunError("the study has federation.site_privacy, but this server has no noise for its means; it is not run.")
    return StreamingMean()


def final_weights(state: ServerState) -> np.ndarray:
    """The model to keep: the last round's, the mean of the last `average_last` rounds', or the running mean with decay
    `model_ema` (Polyak and Juditsky 1992; post-processing, so free)."""
    if not state.recent:
        return state.weights
    mean: np.ndarray = np.stack(state.recent).mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def evaluate_everywhere(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], round: int, weights: np.ndarray, *, final: bool,
    sites: tuple[str, ...] | None = None, personal: bool = False,
) -> list[SiteEvaluation]:
    """The evaluation of these weights, or (`personal`) of each hospital's own model after them, at `sites` (default: every
    evaluating hospital), in name order; hospitals that refuse are left out."""
    kind = "evaluate.personal" if personal else "evaluate.final" if final else "evaluate"
    content = wire.write_instruction(TrainInstruction(federation.study.fingerprint, round, weights))
    names = {node: site for site, node in nodes.items()}
    evaluations = []
    for reply in _ask(grid, federation, nodes, federation.evaluate_sites if sites is None else sites, kind, content):
        with contextlib.suppress(SiteRefusal):
            evaluation = wire.read_evaluation(_content(reply), round=round)
            if evaluation.site == names.get(reply.metadata.src_node_id):
                evaluations.append(evaluation)
    return sorted(evaluations, key=lambda e: e.site)


def calibrate_everywhere(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], round: int, weights: np.ndarray
) -> tuple[list[SiteCalibration], dict[str, str]]:
    """What the training hospitals release for the temperature of these weights, in name order, and the code of each that
    releases nothing. Held-out hospitals are not asked: a model must not be fitted to those it is tested on."""
    content = wire.write_instruction(TrainInstruction(federation.study.fingerprint, round, weights))
    names = {node: site for site, node in nodes.items()}
    found: list[SiteCalibration] = []
    refused: dict[str, str] = {}
    for reply in _ask(grid, federation, nodes, federation.train_sites, "evaluate.calibrate", content):
        site = names.get(reply.metadata.src_node_id, "")
        try:
            calibration = wire.read_calibration(_content(reply), round=round)
        except SiteRefusal as refusal:
            refused[site] = refusal.code
            continue
        if calibration.site == site:
            found.append(calibration)
        else:
            refused[site] = "bad_message"
    silent = set(federation.train_sites) - {one.site for one in found} - refused.keys()
    return sorted(found, key=lambda one: one.site), refused | dict.fromkeys(sorted(silent), "no_reply")


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
    names = {nodes[site]: site for site in chosen if site in nodes}
    waiting = set(chosen)
    for reply in _ask(grid, federation, nodes, chosen, "train", content):
        site = names.get(reply.metadata.src_node_id, "")
        waiting.discard(site)
        try:
            update = checked_update(reply, site, instruction, federation.maximum_update_norm)
        except SiteRefusal as refusal:
            refused[site] = refusal.code
            federation.progress("refused", {"round": instruction.round, "site": site, "code": refusal.code})
            continue
        del reply  # nobody holds an update, or the message it came in, while the next hospital trains
        yield update
        del update
    refused.update(dict.fromkeys(waiting, "no_reply"))


def checked_update(reply: Message, site: str, instruction: TrainInstruction, longest: float = math.inf) -> SiteUpdate:
    """The update in a reply that should be this site's to this instruction, of at most this norm. Error: SiteRefusal."""
    update = wire.read_update(_content(reply), round=instruction.round, size=instruction.weights.size)
    if update.site != site:
        raise SiteRefusal("bad_message")
    if l2_norm(update.delta) > longest:
        raise SiteRefusal("update_too_large")
    return update


def _content(reply: Message) -> RecordDict:
    """What a reply holds. Error: SiteRefusal where it is an error or a refusal."""
    code = "error" if reply.has_error() else wire.refusal_of(reply.content)
    if code is not None:
        raise SiteRefusal(code)
    return reply.content


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
