"""Which hospital counts how much in the mean, so that the hospitals end up alike: by what each let leave of its evaluations.

A hospital's training loss is private and is never used here. The only input is the risk of each hospital in an evaluation of
an earlier round that its own policy released (exact, rounded, or as noised counts that its ledger holds), so the weights are
post-processing of releases and the updates' guarantee stands. But they are no public constants any more: where evaluations
leave without noise, the model depends through them on test patients without differential privacy.

`q_fair`: weight ∝ public weight · riskᵠ, the direction of q-FedAvg (Li et al. 2020, Fair resource allocation in federated
learning). Its step length from an estimated Lipschitz constant is left out: the server's learning rate stands for it.
`minimax`: weights climb the risks by exponentiated gradient, ln(weight) += step · risk (Mohri et al. 2019, Agnostic federated
learning, with the entropic mirror map in place of the projection).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from fedimaging.results import SiteEvaluation
from fedimaging.spec import Spec

Factors = dict[str, float]
"""Of each hospital, what its public weight is multiplied by; a hospital that is not in it has 1."""

_LEAST_RISK = 1e-3  # a hospital without any error still counts a little


class FairnessSpec(Spec):
    """kind: `none`, `q_fair` or `minimax`. q: of `q_fair`; 0 leaves the public weights as they are, to the bit.
    step: of `minimax`, how fast weights move at each evaluation. most: no hospital counts more than so many times, or less than
    one in so many times, its public weight, whatever it says: a hospital that lies about its risk cannot take the model over."""

    kind: Literal["none", "q_fair", "minimax"] = "none"
    q: float = Field(1.0, ge=0, le=10)
    step: float = Field(1.0, gt=0, le=100)
    most: float = Field(10.0, gt=1, le=1000)


def risks_of(evaluations: Sequence[SiteEvaluation], metric: str) -> dict[str, float]:
    """Of each hospital the loss it let leave; or of all 1 - `metric` where any hospital has no loss (noised counts have none),
    since the two cannot be compared. Values that are not finite are left out."""
    by_loss = all(math.isfinite(e.loss) for e in evaluations)
    risks = {e.site: e.loss if by_loss else 1 - e.metrics.get(metric, math.nan) for e in evaluations}
    return {site: risk for site, risk in risks.items() if math.isfinite(risk)}


def next_factors(
    spec: FairnessSpec, before: Mapping[str, float], risks: Mapping[str, float], weights: Mapping[str, float]
) -> Factors:
    """The factors after an evaluation.

    risks: finite, lower where the model is better (`risks_of`). weights: the public weight of each training hospital. A
    hospital without a risk (it let nothing leave, or did not answer) is taken at the median of the others, weighted by the
    public weights: a median, so that one hospital's lie moves no other hospital. Nothing changes where no risk is known.
    """
    known = {name: max(risk, _LEAST_RISK) for name, risk in risks.items() if name in weights}
    if spec.kind == "none" or not known:
        return dict(before)
    middle = _median(known, weights)
    of_all = {name: known.get(name, middle) for name in sorted(weights)}
    if spec.kind == "q_fair":
        logs = {name: spec.q * math.log(risk / middle) for name, risk in of_all.items()}
    else:
        logs = {name: math.log(before.get(name, 1.0)) + spec.step * (risk - middle) for name, risk in of_all.items()}
    edge = math.log(spec.most)
    return {name: math.exp(min(edge, max(-edge, log))) for name, log in logs.items()}


def weighed(weights: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """Each hospital's weight in the mean."""
    return {name: weight * factors.get(name, 1.0) for name, weight in weights.items()}


def _median(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The least value at or below which half of the weight lies."""
    half, below = sum(weights[name] for name in values) / 2, 0.0
    for name in sorted(values, key=lambda name: values[name]):
        below += weights[name]
        if below >= half:
            return values[name]
    raise AssertionError("no value")
