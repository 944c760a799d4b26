"""Server optimizers: what the server does with the mean update.

Each is a pure step `(weights, mean_update, moments, spec) -> (weights, moments)` on vectors (P,). The update points
downhill already (end minus start), so it is added. All are post-processing of what the hospitals released, so they
cost no privacy. Source: Reddi et al. 2021, Adaptive Federated Optimization, algorithm 2; Hsu et al. 2019 for FedAvgM.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from fedimaging.spec import Spec

Moments = dict[str, np.ndarray]

_BLOCK = 2**16


class ServerOptimizerSpec(Spec):
    """`fedprox` differs from `fedavg` at the hospitals only (`proximal_mu`)."""

    algorithm: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    server_learning_rate: float = Field(1.0, gt=0, le=100)
    server_momentum: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)


def _fedavg(weights: np.ndarray, update: np.ndarray, moments: Moments, spec: ServerOptimizerSpec) -> np.ndarray:
    return weights + spec.server_learning_rate * update


def _fedavgm(weights: np.ndarray, update: np.ndarray, moments: Moments, spec: ServerOptimizerSpec) -> np.ndarray:
    moments["first"] = spec.server_momentum * moments["first"] + update
    return weights + spec.server_learning_rate * moments["first"]


def _adaptive(weights: np.ndarray, update: np.ndarray, moments: Moments, spec: ServerOptimizerSpec) -> np.ndarray:
    square = update * update
    moments["first"] = spec.server_momentum * moments["first"] + (1 - spec.server_momentum) * update
    if spec.algorithm == "fedadam":
        moments["second"] = spec.beta2 * moments["second"] + (1 - spec.beta2) * square
    else:
        sign = np.sign(moments["second"] - square)
        moments["second"] = moments["second"] - (1 - spec.beta2) * square * sign
    return weights + spec.server_learning_rate * moments["first"] / (np.sqrt(moments["second"]) + spec.tau)


_Step = Callable[[np.ndarray, np.ndarray, Moments, ServerOptimizerSpec], np.ndarray]
SERVER_OPTIMIZERS: dict[str, tuple[_Step, tuple[str, ...]]] = {
    "fedavg": (_fedavg, ()),
    "fedprox": (_fedavg, ()),
    "fedavgm": (_fedavgm, ("first",)),
    "fedadam": (_adaptive, ("first", "second")),
    "fedyogi": (_adaptive, ("first", "second")),
}
"""Name -> (step, names of the moments it keeps)."""


def first_moments(spec: ServerOptimizerSpec, size: int) -> Moments:
    """Moments before round 1, float64 (P,): zeros, and tau² for the second moment (so the first step is bounded)."""
    names = SERVER_OPTIMIZERS[spec.algorithm][1]
    return {name: np.full(size, spec.tau**2 if name == "second" else 0.0) for name in names}


def server_step(
    weights: np.ndarray, mean_update: np.ndarray, moments: Moments, spec: ServerOptimizerSpec
) -> tuple[np.ndarray, Moments]:
    """One server step. `weights` float32 (P,), `mean_update` float64 (P,); returns float32 weights and new moments. Block by
    block, so that a large network needs no further copies of itself."""
    step, names = SERVER_OPTIMIZERS[spec.algorithm]
    stepped, after = np.empty(weights.shape, np.float32), {name: np.empty(weights.shape) for name in names}
    for first in range(0, len(weights), _BLOCK):
        here = slice(first, first + _BLOCK)
        part = {name: moments[name][here] for name in names}
        stepped[here] = step(weights[here].astype(np.float64), mean_update[here], part, spec)
        for name in names:
            after[name][here] = part[name]
    return stepped, after
