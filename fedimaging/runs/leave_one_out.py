"""Leave-one-hospital-out: how the model does at each training hospital when it never saw that hospital.

For each hospital a federation of the others is trained with the same study. `external` is its result on all patients of the
hospital left out, `internal` that of the main run on the hospital's test patients. Their difference is taken over those same
test patients, which neither model trained on, with a bootstrap that draws each patient for both models at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedimaging.results import Interval, SiteEvaluation
from fedimaging.runs.matrix import undefined_words
from fedimaging.runs.metric_tables import metric_table
from fedimaging.runs.scored import Scored, laid_end_to_end, statistics_of
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.bootstrap import Statistic, drawn, interval, interval_of


@dataclass(frozen=True)
class LeftOut:
    """The federation without hospital `name`, what it says of that hospital's patients, and what it cost."""

    name: str
    arm: SimulatedFederation
    evaluations: Sequence[SiteEvaluation]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class _Pair:
    """A hospital's own test patients, scored by the main run and by the federation without it."""

    internal: Statistic
    external: Statistic
    patients: np.ndarray


def leave_one_out(
    study: Study, metric: str, federation: SimulatedFederation, main: Sequence[SiteEvaluation], arms: Sequence[LeftOut]
) -> dict[str, Any]:
    """`leave_one_out` of report.json: `metric`; `hospitals`: name -> `external`, `internal`, `external_same` and `difference`
    (internal minus external, on the same patients) as intervals, and `why` where `external` has no value; `mean`: the same
    over the hospitals that have all of them, each counting alike; `cost`: seconds of each federation.

    Without scores of single patients (policy) there are no differences: `external` and `internal` stand alone.
    """
    inside = {e.site: e for e in main}
    hospitals, pairs = {}, {}
    for arm in arms:
        outside = next((e for e in arm.evaluations if e.site == arm.name), None)
        external = metric_table(study, [outside]).get(metric) if outside else None
        own = inside.get(arm.name)
        row: dict[str, Any] = {
            "external": external, "internal": metric_table(study, [own]).get(metric) if own else None,
            "external_same": None, "difference": None,
            "why": _why(study, external),
        }
        if own and outside and own.predictions and outside.predictions:
            pairs[arm.name] = pair = _pair(study, metric, federation, own, outside, arm)
            row |= _compared(study, pair)
        hospitals[arm.name] = row
    cost = [{"hospital": arm.name, **{name: round(value, 3) for name, value in arm.seconds.items()}} for arm in arms]
    return {"metric": metric, "hospitals": hospitals, "mean": _means(study, list(pairs.values())), "cost": cost}


def _why(study: Study, external: Mapping[str, Any] | None) -> str | None:
    if external is None:
        return "nothing released"
    return undefined_words(external, study.task.kind) if external["value"] is None else None


def _pair(
    study: Study, metric: str, federation: SimulatedFederation, own: SiteEvaluation, outside: SiteEvaluation, arm: LeftOut
) -> _Pair:
    """Both list a hospital's scans in the order of their rows; the one that was left out has more of them."""
    place = federation.names.index(arm.name)
    tested = federation.test_site[np.flatnonzero(arm.arm.test_site == place)] == place
    internal, external = laid_end_to_end([own]), laid_end_to_end([outside]).only(tested)
    return _Pair(_statistic(study, metric, internal), _statistic(study, metric, external), internal.patients)


def _statistic(study: Study, metric: str, scans: Scored) -> Statistic:
    return statistics_of(study, scans)[metric]


def _compared(study: Study, pair: _Pair) -> dict[str, Any]:
    def over(statistic: Statistic) -> dict[str, Any]:
        point = float(statistic(np.ones((1, len(pair.patients))))[0])
        return interval(
            point, statistic, pair.patients, resamples=study.evaluation.resamples, seed=study.seed
        ).as_json()

    return {"external_same": over(pair.external), "difference": over(lambda w: pair.internal(w) - pair.external(w))}


def _means(study: Study, pairs: Sequence[_Pair]) -> dict[str, Any] | None:
    """Means over hospitals on their own test patients; each hospital's patients are drawn on their own."""
    one = [np.ones((1, len(pair.patients))) for pair in pairs]
    defined = [
        (place, pair) for place, (pair, ones) in enumerate(zip(pairs, one, strict=True))
        if np.isfinite(pair.internal(ones)[0]) and np.isfinite(pair.external(ones)[0])
    ]
    if len(defined) < 2:
        return None
    patients = sum(len(np.unique(pair.patients)) for _, pair in defined)

    def mean(which: str) -> dict[str, Any]:
        draws, points = [], []
        for place, pair in defined:
            statistic = _of(pair, which)
            points.append(float(statistic(one[place])[0]))
            draws.append(drawn(statistic, pair.patients, resamples=study.evaluation.resamples, seed=study.seed + place))
        with np.errstate(invalid="ignore"):
            return interval_of(float(np.mean(points)), np.mean(draws, axis=0), patients).as_json()

    return {"hospitals": len(defined), **{name: mean(name) for name in ("external", "internal", "difference")}}


def _of(pair: _Pair, which: str) -> Statistic:
    if which == "difference":
        return lambda weights: pair.internal(weights) - pair.external(weights)
    return pair.external if which == "external" else pair.internal


def worst_external(table: Mapping[str, Any], *, lower_is_better: bool) -> tuple[str, Interval] | None:
    """The hospital at which a model that never saw it does worst, with its external result; None where none has a value."""
    found = {name: row["external"] for name, row in table["hospitals"].items() if row["external"]}
    values = {name: one for name, one in found.items() if one["value"] is not None}
    if not values:
        return None
    sign = -1 if lower_is_better else 1
    name = min(values, key=lambda hospital: sign * values[hospital]["value"])
    one = values[name]
    low, high = (math.nan if one[end] is None else one[end] for end in ("low", "high"))
    return name, Interval(one["value"], low, high, one["n_patients"])
