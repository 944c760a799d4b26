"""The operating point and the decision curve of a run: a threshold from validation patients, judged on test patients.

From scores where hospitals release them, else from noised totals, whose thresholds are the public borders between the bins.
Exact or rounded metrics alone, or a study without validation patients, give no threshold: none is made up from test patients.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedimaging.results import Interval, SiteEvaluation
from fedimaging.runs.metric_tables import possible_totals
from fedimaging.runs.scored import Scored, laid_end_to_end, validation_of
from fedimaging.study.schema import Study
from fedimaging.training.counted_decisions import counted_curve, counted_rates, counted_threshold
from fedimaging.training.counted_metrics import added_up
from fedimaging.training.decision_curve import DecisionCurve, decision_curve
from fedimaging.training.operating_point import choose_threshold, rates_at

_NO_VALIDATION = "no hospital released anything of validation patients; the study keeps some with data.split.validation"
_NO_CLASS = "the validation patients do not show both answers clearly enough for a threshold"
_NO_RELEASE = "metrics alone left the hospitals; a threshold needs scores or noised totals of validation patients"


def operating_point(study: Study, evaluations: Sequence[SiteEvaluation]) -> dict[str, Any] | None:
    """`operating_point` of report.json: `aim`, `target`, `threshold` (null: `why` says so), `from` (scores or totals),
    `validation` (patients, and the rates there, which flatter), `test` and `held_out` (rates with intervals over all patients),
    and `hospitals` (name -> rates). None where the study does not ask for one. A score at or above the threshold (from totals:
    above it) is positive."""
    spec = study.evaluation.operating_point
    if spec is None:
        return None
    aim, target = spec.aim
    found: dict[str, Any] = {"aim": aim, "target": target, "threshold": None, "from": None, "why": None}
    training = [e for e in evaluations if e.site not in study.hospitals.held_out and e.validation]
    if scored := [e for e in training if "scores" in e.validation]:
        return found | _from_scores(study, aim, target, scored, evaluations)
    if noised := [e for e in training if possible_totals(study, e.validation)]:
        return found | _from_totals(study, aim, target, noised, evaluations)
    kept_back = evaluations and all(e.release in ("metrics", "coarsened") for e in evaluations)
    return found | {"why": _NO_RELEASE if kept_back else _NO_VALIDATION}


def decision_curves(study: Study, evaluations: Sequence[SiteEvaluation]) -> dict[str, Any] | None:
    """`decision_curve` of report.json, over the training hospitals' test patients: `thresholds`, `model` (intervals),
    `treat_all`. None where the task is not binary, or neither scores nor totals left, or a class is missing."""
    if study.task.kind != "binary":
        return None
    inside = [e for e in evaluations if e.site not in study.hospitals.held_out]
    resamples, seed = study.evaluation.resamples, study.seed
    curve: DecisionCurve | None = None
    if scored := [e for e in inside if e.predictions]:
        scans = laid_end_to_end(scored)
        truth = scans.arrays["labels"]
        if 0 < truth.sum() < len(truth):
            curve = decision_curve(scans.arrays["scores"][:, 1], truth, scans.patients, resamples=resamples, seed=seed)
    elif noised := [e for e in inside if possible_totals(study, e.totals)]:
        curve = counted_curve(added_up([e.totals for e in noised]), resamples=resamples, seed=seed)
    if curve is None:
        return None
    model = [interval.as_json() for interval in curve.model]
    return {"thresholds": list(curve.thresholds), "model": model, "treat_all": list(curve.treat_all)}


def _from_scores(
    study: Study, aim: str, target: float, validating: Sequence[SiteEvaluation], evaluations: Sequence[SiteEvaluation]
) -> dict[str, Any]:
    chosen_on = validation_of(validating)
    threshold = choose_threshold(chosen_on.arrays["scores"][:, 1], chosen_on.arrays["labels"], aim=aim, target=target)
    if threshold is None or not np.isfinite(threshold):
        return {"from": "scores", "why": _NO_CLASS}

    def rates(scans: Scored) -> dict[str, Any]:
        return _as_json(rates_at(
            scans.arrays["scores"][:, 1], scans.arrays["labels"], scans.patients, threshold,
            resamples=study.evaluation.resamples, seed=study.seed,
        ))  # fmt: skip

    tested = {e.site: e for e in evaluations if e.predictions}
    return {
        "threshold": threshold, "from": "scores",
        "validation": {"n_patients": chosen_on.n_patients, **rates(chosen_on)},
        **_everywhere(study, tested, lambda some: rates(laid_end_to_end(some))),
    }


def _from_totals(
    study: Study, aim: str, target: float, validating: Sequence[SiteEvaluation], evaluations: Sequence[SiteEvaluation]
) -> dict[str, Any]:
    chosen_on = added_up([e.validation for e in validating])
    threshold = counted_threshold(chosen_on, aim=aim, target=target)
    if threshold is None:
        return {"from": "totals", "why": _NO_CLASS}

    def rates(totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return _as_json(counted_rates(totals, threshold, resamples=study.evaluation.resamples, seed=study.seed))

    tested = {e.site: e for e in evaluations if possible_totals(study, e.totals)}
    validation = rates(chosen_on)
    return {
        "threshold": threshold, "from": "totals",
        "validation": {"n_patients": max(one["n_patients"] for one in validation.values()), **validation},
        **_everywhere(study, tested, lambda some: rates(added_up([e.totals for e in some]))),
    }


def _everywhere(study: Study, tested: Mapping[str, SiteEvaluation], rates: Any) -> dict[str, Any]:
    inside = [e for name, e in tested.items() if name not in study.hospitals.held_out]
    outside = [e for name, e in tested.items() if name in study.hospitals.held_out]
    return {
        "test": rates(inside) if inside else None, "held_out": rates(outside) if outside else None,
        "hospitals": {name: rates([e]) for name, e in tested.items()},
    }


def _as_json(rates: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: interval.as_json() for name, interval in rates.items()}
