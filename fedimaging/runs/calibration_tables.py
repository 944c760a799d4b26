"""Calibration on test patients, before and after tempering, from scores that simulated hospitals release.

A real hospital releases no scores, so that a deployment has the temperature (`tempering.py`) and none of these tables.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.results import SiteEvaluation
from fedimaging.runs import groups
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.calibration import Calibration, Forecasts, calibration, forecasts_of
from fedimaging.training.temperature import tempered

Tables = dict[str, Any]


def calibration_block(
    study: Study, dataset: Dataset, federation: SimulatedFederation, evaluations: Sequence[SiteEvaluation],
    tempering: dict[str, Any] | None,
) -> dict[str, Any]:
    """`calibration` of report.json: `kind` of the task, `tempering` (`tempering.py`; null where the study asks for none), and
    the tables."""
    temperature = tempering["temperature"]["value"] if tempering else None
    tables = calibration_tables(study, dataset, federation, evaluations, temperature)
    return {"kind": study.task.kind, "tempering": tempering, **tables}


def calibration_tables(
    study: Study, dataset: Dataset, federation: SimulatedFederation, evaluations: Sequence[SiteEvaluation],
    temperature: float | None,
) -> Tables:
    """`before` and, where there is a temperature, `after` (else null): each with `test` (all training hospitals' test patients),
    `held_out`, `sites` by hospital and `groups` by column and value; `Calibration.as_json`, or null for fewer than
    `groups.least_shown` patients. `p_adjusted` of hospitals, and of a column's groups, holds for all of them together
    (Holm 1979). Both null for a segmentation, and where no hospital releases scores.
    """
    scored = [e for e in evaluations if e.predictions]
    finite = scored and study.task.kind != "segmentation" and all(np.isfinite(e.predictions["scores"]).all() for e in scored)
    if not finite:
        return {"before": None, "after": None}
    known_groups = groups.simulated_groups(study, dataset, federation)
    group_of = {column: {e.site: known_groups(e, column) for e in scored} for column in study.evaluation.groups}
    before = _tables(study, scored, group_of)
    if temperature is None:
        return {"before": before, "after": None}
    known = temperature
    warmed = [_rescored(e, lambda scores: tempered(scores, study.task.kind, known)) for e in scored]
    return {"before": before, "after": _tables(study, warmed, group_of)}


def _rescored(evaluation: SiteEvaluation, score: Callable[[np.ndarray], np.ndarray]) -> SiteEvaluation:
    arrays = evaluation.predictions | {"scores": score(evaluation.predictions["scores"])}
    return replace(evaluation, predictions=arrays)


def _tables(
    study: Study, scored: Sequence[SiteEvaluation], group_of: dict[str, dict[str, np.ndarray]]
) -> Tables:
    held_out = set(study.hospitals.held_out)
    inside = [e for e in scored if e.site not in held_out]
    outside = [e for e in scored if e.site in held_out]
    return {
        "test": _one(study, _joined(study, inside)), "held_out": _one(study, _joined(study, outside)),
        "sites": _adjusted({e.site: _one(study, _joined(study, [e])) for e in scored}),
        "groups": {column: _by_group(study, inside, values) for column, values in group_of.items()},
    }


def _by_group(study: Study, inside: Sequence[SiteEvaluation], values: dict[str, np.ndarray]) -> Tables:
    """The groups that are large enough, by name."""
    names = sorted({str(name) for e in inside for name in values[e.site]} - {groups.NOT_STATED}, key=groups.order)
    tables = {}
    for name in names:
        parts = [_forecasts(study, e, values[e.site] == name) for e in inside]
        tables[name] = _one(study, _laid_together(parts))
    return _adjusted({name: table for name, table in tables.items() if table is not None})


def _joined(study: Study, evaluations: Sequence[SiteEvaluation]) -> Forecasts:
    return _laid_together([_forecasts(study, e, np.ones(len(e.predictions["patient"]), bool)) for e in evaluations])


def _forecasts(study: Study, evaluation: SiteEvaluation, keep: np.ndarray) -> Forecasts:
    found = evaluation.predictions
    patient = np.char.add(f"{evaluation.site}/", found["patient"][keep].astype(str))
    return forecasts_of(found["scores"][keep], found["labels"][keep], patient, study.task.kind)


def _laid_together(parts: Sequence[Forecasts]) -> Forecasts:
    if not parts:
        return Forecasts(np.zeros(0), np.zeros(0), np.zeros(0, dtype=str))
    return Forecasts(*(np.concatenate([getattr(part, name) for part in parts]) for name in (
        "probability", "happened", "patient")))


def _one(study: Study, found: Forecasts) -> dict[str, Any] | None:
    least = groups.least_shown(study)
    if len(np.unique(found.patient)) < least:
        return None
    known: Calibration = calibration(found, least=least, resamples=study.evaluation.resamples, seed=study.seed)
    return known.as_json()


def _adjusted(tables: dict[str, Any]) -> dict[str, Any]:
    """With `p_adjusted` in each table that has a p-value."""
    given = {name: table["p_value"] for name, table in tables.items() if table and table["p_value"] is not None}
    for name, p_value in holm(given).items():
        tables[name]["p_adjusted"] = p_value
    return tables


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Each p-value such that those below a level hold together at that level, however they depend on each other."""
    adjusted, least = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = least if math.isfinite(least) else math.nan
    return adjusted
