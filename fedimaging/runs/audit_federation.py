"""Train a federation for an audit: the normal path from instruction to update, with the auditor at the server's side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedimaging.aggregation.mean import StreamingMean
from fedimaging.aggregation.site_privacy import PrivateMean
from fedimaging.federated.client_app import build_client_app
from fedimaging.federated.in_process import run_in_process
from fedimaging.federated.rounds import Federation, ServerState, final_weights, first_state
from fedimaging.federated.server_app import build_server_app
from fedimaging.files import write_whole
from fedimaging.results import RoundResult, SiteEvaluation
from fedimaging.runs import hospitals
from fedimaging.runs.audit_target import Target
from fedimaging.runs.site_privacy import private_means
from fedimaging.site.simulated import SimulatedFederation, open_simulated_site
from fedimaging.site.site import Site

OnUpdate = Callable[[str, int, np.ndarray, np.ndarray], None]
"""(hospital, round, weights sent (P,), update received (P,)): all that the server sees of a hospital in a round."""
OpenSite = Callable[[Path, int], Site]


def train_federation(
    target: Target, federation: SimulatedFederation, *, workers: int, on_update: OnUpdate | None = None,
    open_site: OpenSite = open_simulated_site,
) -> np.ndarray:
    """Train `federation` in its own folder to the last round; returns the final weights (P,). Without evaluations, unless the
    hospitals' weights follow them.

    Error: RunError as in any run. The folder must be new: ledgers refuse to repeat a round.
    """
    study, start = target.study, first_state(target.study, target.bench.start)
    tap = _Tap(start.weights, on_update)
    means = private_means(study, federation.folder, simulated=True)
    federation.folder.mkdir(parents=True, exist_ok=True)
    federation.save()
    ends: list[ServerState] = []
    steering = federation.test_names if study.federation.fairness.kind != "none" else ()

    def on_round(state: ServerState, result: RoundResult) -> None:
        tap.weights = state.weights

    def on_end(state: ServerState, evaluations: list[SiteEvaluation]) -> None:
        ends.append(state)

    server = build_server_app(
        Federation(
            study=study, train_sites=federation.train_names, evaluate_sites=steering,
            public_weights=hospitals.public_weights(federation, target.dataset), model_fingerprint=target.bench.fingerprint,
            planned_epsilon=lambda site, round: float("nan"), progress=tap.event, total_metrics=lambda evaluations: {},
            update_noise=hospitals.public_noise(federation),
            mean_for=lambda round, asked: tap.around(means(round, asked) if means else StreamingMean()),
        ),
        start, on_round, on_end,
    )  # fmt: skip
    folder = federation.folder
    client = build_client_app(lambda context, _: open_site(folder, int(context.node_config["partition-id"])))
    run_in_process(server, client, len(federation.names), workers=min(workers, len(federation.names)))
    return final_weights(ends[0])


class _Tap:
    """Shows each update that was received, and the weights it answers, to the auditor."""

    def __init__(self, weights: np.ndarray, on_update: OnUpdate | None) -> None:
        self.weights, self._on_update, self._last = weights, on_update, np.zeros(0, np.float32)

    def around(self, mean: StreamingMean | PrivateMean) -> StreamingMean:
        return cast(StreamingMean, _Tapped(mean, self))

    def received(self, update: np.ndarray) -> None:
        self._last = update

    def event(self, kind: str, facts: Any) -> None:
        if kind == "trained" and self._on_update is not None:
            self._on_update(facts["site"], facts["round"], self.weights, self._last)


class _Tapped:
    """A mean that lets the tap see what is added to it."""

    def __init__(self, mean: StreamingMean | PrivateMean, tap: _Tap) -> None:
        self._mean, self._tap = mean, tap

    @property
    def count(self) -> int:
        return self._mean.count

    def add(self, update: np.ndarray, weight: float = 1.0) -> None:
        self._tap.received(update)
        self._mean.add(update, weight)

    def result(self) -> np.ndarray:
        return self._mean.result()


def kept(folder: Path, key: dict[str, Any], work: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `work` gives in an empty `folder`, or gave in an audit before: a finished part is not done again.

    `key`: what the result depends on. A part that a kill cut short, or of another key, is done from its beginning.
    """
    path, text = folder / "result.npz", json.dumps(key, sort_keys=True)
    if path.exists():
        with np.load(path, allow_pickle=False) as found:
            if str(found["key"]) == text:
                return {name: found[name] for name in found.files if name != "key"}
    shutil.rmtree(folder, ignore_errors=True)
    arrays = work()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, key=np.array(text), **arrays)

    write_whole(path, write)
    return arrays
