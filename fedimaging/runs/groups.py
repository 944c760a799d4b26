"""Test results by groups of patients (sex, age, scanner …), of a simulation.

A simulation holds the whole manifest, so it can say who each test patient is. A real hospital sends no score and no column
of its manifest, whatever the study says: a deployment has no such tables, and nothing here makes anything more leave a
hospital.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.errors import DataError, StudyError, bad_value, unknown_name
from fedimaging.results import SiteEvaluation
from fedimaging.runs.assemble import primary_metric
from fedimaging.runs.metric_tables import metric_table
from fedimaging.runs.scored import laid_end_to_end, statistics_of
from fedimaging.runs.worst import LOWER_IS_BETTER
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.group_gap import group_gap

NOT_STATED = "not stated"
TOO_FEW = "too few"


def check_groups(study: Study, dataset: Dataset) -> None:
    """Errors: StudyError where the simulated hospitals' policy releases no scores; DataError where a column of
    `evaluation.groups` is not in the data, or an age is no number."""
    asked = study.evaluation.groups
    if asked and study.policy.release_evaluation != "scores":
        rule = f"needs each scan's score, and policy.release_evaluation={study.policy.release_evaluation!r} keeps it back"
        raise StudyError(bad_value("evaluation.groups", list(asked), rule, "leave the groups out, or release scores"))
    for column in asked:
        if column not in dataset.columns:
            raise DataError(unknown_name("evaluation.groups", column, dataset.columns))
        groups_of(study, dataset, column)


def groups_of(study: Study, dataset: Dataset, column: str) -> np.ndarray:
    """The group (N,) str of each scan: what the column says of its patient, at the first scan that says anything; ages in
    the bands of `evaluation.age_bands`. Error: DataError for an age that is no number."""
    return groups_of_rows(dataset.columns[column], dataset.patient_ids, column, study.evaluation.age_bands)


def groups_of_rows(texts: np.ndarray, patient_ids: np.ndarray, column: str, bands: Sequence[float]) -> np.ndarray:
    """The same from the texts (N,) of a column and the patients (N,)."""
    texts = np.char.strip(texts.astype(str))
    _, member = np.unique(patient_ids, return_inverse=True)
    of_patient = np.full(int(member.max()) + 1 if len(member) else 0, NOT_STATED, dtype=object)
    stated = np.flatnonzero(texts != "")[::-1]  # from the last to the first: the first is what stays
    values = [_age_band(text, bands) if column == "age" else text for text in texts[stated].tolist()]
    of_patient[member[stated]] = np.array(values, dtype=object)
    return of_patient[member].astype(str)


def _age_band(text: str, edges: Sequence[float]) -> str:
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not math.isfinite(age):
        raise DataError(f"age={text!r} is no number; mend the manifest, or leave age out of evaluation.groups.")
    place = int(np.searchsorted(edges, age, side="right"))
    if place == 0:
        return f"under {edges[0]:g}"
    if place == len(edges):
        return f"{edges[-1]:g} and over"
    return f"{edges[place - 1]:g} to under {edges[place]:g}"


def group_tables(
    study: Study, dataset: Dataset, federation: SimulatedFederation, evaluations: Sequence[SiteEvaluation]
) -> dict[str, Any]:
    """`groups`: column -> value -> metric table over the training hospitals' test patients; `group_gaps`: column -> best
    and worst group by the primary metric, their difference with a 95 % interval over patients, and a permutation p-value.

    A value with fewer than `evaluation.minimum_group` patients has no figures: all such are counted under `too few`.
    Empty where the study asks for no groups.
    """
    held_out = set(study.hospitals.held_out)
    mine = [e for e in evaluations if e.site not in held_out and e.predictions]
    tables: dict[str, Any] = {}
    gaps: dict[str, Any] = {}
    for column in study.evaluation.groups if mine else ():
        value_of_row = groups_of(study, dataset, column)
        values = [value_of_row[test_rows(federation, e.site)] for e in mine]
        tables[column], shown = _tables(study, mine, values)
        gaps[column] = _gap(study, mine, values, shown)
    return {"groups": tables, "group_gaps": gaps}


def test_rows(federation: SimulatedFederation, site: str) -> np.ndarray:
    """In the order in which the hospital's scans were scored."""
    return np.flatnonzero(federation.test_site == federation.names.index(site))


def _tables(
    study: Study, mine: Sequence[SiteEvaluation], values: Sequence[np.ndarray]
) -> tuple[dict[str, Any], list[str]]:
    found = {value for each in values for value in each.tolist()}
    names = [*sorted(found - {NOT_STATED}, key=order), NOT_STATED]
    tables: dict[str, Any] = {}
    few = few_groups = 0
    for name in names:
        parts = [_only(e, each == name) for e, each in zip(mine, values, strict=True)]
        patients = sum(e.n_patients for e in parts)
        if patients >= study.evaluation.minimum_group:
            tables[name] = metric_table(study, [e for e in parts if e.n_patients])
        elif patients:
            few, few_groups = few + patients, few_groups + 1
    shown = [name for name in tables if name != NOT_STATED]
    if few:
        tables[TOO_FEW] = {"groups": few_groups, "n_patients": few}
    return tables, shown


def order(name: str) -> tuple[bool, float, str]:
    """`under 40` first, then by the number it begins with, then by name."""
    first = name.split(" ", 1)[0]
    number = first.replace(".", "", 1).isdigit()
    return not name.startswith("under ") and not number, -math.inf if not number else float(first), name


def _only(evaluation: SiteEvaluation, keep: np.ndarray) -> SiteEvaluation:
    arrays = {name: array[keep] for name, array in evaluation.predictions.items()}
    return SiteEvaluation(
        evaluation.site, evaluation.round, math.nan, len(np.unique(arrays["patient"])), {}, arrays, evaluation.release
    )


def _gap(
    study: Study, mine: Sequence[SiteEvaluation], values: Sequence[np.ndarray], shown: Sequence[str]
) -> dict[str, Any] | None:
    """None where fewer than two groups have a value to compare."""
    metric, scans = primary_metric(study), laid_end_to_end(mine)
    codes = {name: code for code, name in enumerate(shown)}
    group = np.array([codes.get(value, -1) for each in values for value in each.tolist()], dtype=np.int64)
    found = group_gap(
        statistics_of(study, scans)[metric], group, scans.patients, lower_is_better=metric.startswith(LOWER_IS_BETTER),
        resamples=study.evaluation.resamples, seed=study.seed,
    )
    if found is None:
        return None
    return {
        "metric": metric, "best": shown[found.best], "worst": shown[found.worst], **found.gap.as_json(),
        "p_value": found.p_value,
    }
