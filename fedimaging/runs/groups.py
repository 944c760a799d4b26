"""Test results by groups of patients (sex, age, scanner …).

A simulation whose policy releases scores holds the whole manifest, so it can say who each test patient is. Elsewhere the
tables are made of what each hospital releases of groups (`site/groups.py`), and of nothing where it releases nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.errors import DataError, StudyError, bad_value, unknown_name
from fedimaging.privacy.released_metrics import BINS, GROUP
from fedimaging.results import Arrays, Interval, SiteEvaluation
from fedimaging.runs.assemble import primary_metric
from fedimaging.runs.metric_tables import metric_table, quick_metric
from fedimaging.runs.report_text import read_interval
from fedimaging.runs.scored import laid_end_to_end, statistics_of
from fedimaging.runs.worst import LOWER_IS_BETTER
from fedimaging.site.groups import NOT_STATED, columns_of, group_shapes, groups_of, public_groups
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.counted_metrics import added_up, counted_metrics
from fedimaging.training.group_gap import group_gap

TOO_FEW = "too few"

GroupsOf = Callable[[SiteEvaluation, str], np.ndarray]
"""An evaluation with scores and a column -> the group (S,) of each of its scans."""


def check_groups(study: Study, dataset: Dataset) -> None:
    """Errors: StudyError where the simulated hospitals' policy releases nothing of groups, or the study does not list the values
    by which they would; DataError where a column of `evaluation.groups` is not in the data, or an age is no number."""
    asked, policy = study.evaluation.groups, study.policy
    if asked and policy.release_evaluation != "scores":
        if policy.release_groups == "none":
            rule = f"needs scores or release_groups: policy.release_evaluation={policy.release_evaluation!r} keeps them back"
            raise StudyError(bad_value("evaluation.groups", list(asked), rule, "leave the groups out, or release them"))
        check_public(study)
    for column in asked:
        for name in columns_of(column):
            if name not in dataset.columns:
                raise DataError(unknown_name("evaluation.groups", name, dataset.columns))
        groups_of(study.evaluation, dataset, column)


def check_public(study: Study) -> None:
    """Error: StudyError for a column whose values real hospitals cannot know from the study."""
    for column in study.evaluation.groups:
        public_groups(study.evaluation, column)


def least_shown(study: Study) -> int:
    """Patients of the smallest group that is shown: the study's minimum, and not below that of the policy."""
    return max(study.evaluation.minimum_group, study.policy.minimum_group)


def simulated_groups(study: Study, dataset: Dataset, federation: SimulatedFederation) -> GroupsOf:
    """The groups of a simulation's test patients, in the order in which their scans were scored."""
    known: dict[str, np.ndarray] = {}

    def groups(evaluation: SiteEvaluation, column: str) -> np.ndarray:
        if column not in known:
            known[column] = groups_of(study.evaluation, dataset, column)
        return known[column][np.flatnonzero(federation.test_site == federation.names.index(evaluation.site))]

    return groups


def group_tables(study: Study, evaluations: Sequence[SiteEvaluation], group_of: GroupsOf | None, least: int) -> dict[str, Any]:
    """`groups`: column -> value -> metric table over the training hospitals' test patients; `group_gaps`: column -> best
    and worst group by the primary metric, their difference with a 95 % interval, and from scores a permutation p-value.

    A value with fewer than `least` patients has no figures: all such are counted under `too few`. Empty where the study asks
    for no groups, or no hospital released any. `group_of`: None where scores are not to be told apart.
    """
    mine = [e for e in evaluations if e.site not in study.hospitals.held_out]
    scored = [e for e in mine if e.predictions] if group_of else []
    tables: dict[str, Any] = {}
    gaps: dict[str, Any] = {}
    for column in study.evaluation.groups:
        if scored and group_of:
            values = [group_of(e, column) for e in scored]
            tables[column], shown = _scored_tables(study, scored, values, least)
            gaps[column] = _scored_gap(study, scored, values, shown)
        elif released := _released(study, column, mine):
            tables[column], shown = _shown({n: t for n, t in released.items() if t}, least)
            gaps[column] = _released_gap(study, tables[column], shown)
    return {"groups": tables, "group_gaps": gaps}


def _scored_tables(
    study: Study, mine: Sequence[SiteEvaluation], values: Sequence[np.ndarray], least: int
) -> tuple[dict[str, Any], list[str]]:
    found = {value for each in values for value in each.tolist()}
    names = [*sorted(found - {NOT_STATED}, key=order), NOT_STATED]
    tables: dict[str, Any] = {}
    few: list[int] = []
    for name in names:
        parts = [_only(e, each == name) for e, each in zip(mine, values, strict=True)]
        patients = sum(e.n_patients for e in parts)
        if patients >= least:
            tables[name] = metric_table(study, [e for e in parts if e.n_patients])
        elif patients:
            few.append(patients)
    return _with_few(tables, few)


def _with_few(tables: dict[str, Any], few: Sequence[int]) -> tuple[dict[str, Any], list[str]]:
    shown = [name for name in tables if name != NOT_STATED]
    if few:
        tables[TOO_FEW] = {"groups": len(few), "n_patients": sum(few)}
    return tables, shown


def order(name: str) -> tuple[tuple[bool, float, str], ...]:
    """Of each part `under 40` first, then by the number it begins with, then by name."""
    return tuple(_part_order(part) for part in name.split(", "))


def _part_order(part: str) -> tuple[bool, float, str]:
    first = part.split(" ", 1)[0]
    number = first.replace(".", "", 1).isdigit()
    return not part.startswith("under ") and not number, -math.inf if not number else float(first), part


def _only(evaluation: SiteEvaluation, keep: np.ndarray) -> SiteEvaluation:
    arrays = {name: array[keep] for name, array in evaluation.predictions.items()}
    return SiteEvaluation(
        evaluation.site, evaluation.round, math.nan, len(np.unique(arrays["patient"])), {}, arrays, evaluation.release
    )


def _scored_gap(
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


def _released(study: Study, column: str, mine: Sequence[SiteEvaluation]) -> dict[str, dict[str, Interval]]:
    """Group -> metric -> interval from what hospitals released of it: from noised totals where any hospital has such, added
    up; else from exact metrics, weighted by patients. Arrays that no hospital of this study can have are left out."""
    names, key = public_groups(study.evaluation, column), GROUP + column
    shape = group_shapes(study.task.kind, study.task.n_outputs, study.evaluation, BINS)[key]
    given = [e.groups for e in mine if key in e.groups and e.groups[key].dtype == np.float32]
    noised = [arrays for arrays in given if arrays[key].shape == shape and _is_noised(arrays, key)]
    if noised:
        total = added_up([{"totals": arrays[key], "noise_std": arrays["noise_std"]} for arrays in noised])
        return {name: _counted(study, total["totals"][place], total["noise_std"]) for place, name in enumerate(names)}
    exact = np.array([arrays[key] for arrays in given if arrays[key].shape == (len(names), 2) and "noise_std" not in arrays])
    return {name: _weighted(study, exact[:, place]) for place, name in enumerate(names)} if len(exact) else {}


def _is_noised(arrays: Arrays, key: str) -> bool:
    std = arrays.get("noise_std", np.zeros(()))
    return std.shape == () and float(std) > 0 and bool(np.isfinite(arrays[key]).all()) and math.isfinite(float(std))


def _counted(study: Study, totals: np.ndarray, std: np.ndarray) -> dict[str, Interval]:
    name = "overlap" if study.task.kind == "segmentation" else "cells"
    return counted_metrics({name: totals, "noise_std": std}, resamples=study.evaluation.resamples, seed=study.seed)


def _weighted(study: Study, figures: np.ndarray) -> dict[str, Interval]:
    """Figures (H, 2) of one group at hospitals: patients, and the metric; NaN where a hospital shows none."""
    known = figures[np.isfinite(figures).all(axis=1) & (figures[:, 0] > 0)].astype(np.float64)
    if not len(known):
        return {}
    patients = known[:, 0].sum()
    return {quick_metric(study): Interval(float(known[:, 0] @ known[:, 1] / patients), math.nan, math.nan, int(patients))}


def _shown(tables: dict[str, dict[str, Interval]], least: int) -> tuple[dict[str, Any], list[str]]:
    kept: dict[str, Any] = {}
    few: list[int] = []
    for name, table in tables.items():
        patients = max(one.n_patients for one in table.values())
        if patients >= least:
            kept[name] = {metric: one.as_json() for metric, one in table.items()}
        elif name != NOT_STATED:
            few.append(patients)
    return _with_few(kept, few)


def _released_gap(study: Study, tables: dict[str, Any], shown: Sequence[str]) -> dict[str, Any] | None:
    """Groups are of different patients, with noise of their own, so the variances of their figures add up. There is no
    permutation test without scores of single patients."""
    metric = primary_metric(study)
    read = {name: read_interval(tables[name].get(metric)) for name in shown}
    found = {name: one for name, one in read.items() if one is not None and math.isfinite(one.value)}
    if len(found) < 2:
        return None
    sign = -1 if metric.startswith(LOWER_IS_BETTER) else 1
    best, worst = max(found, key=lambda name: sign * found[name].value), min(found, key=lambda name: sign * found[name].value)
    gap = abs(found[best].value - found[worst].value)
    half = math.hypot(*((found[name].high - found[name].low) / 2 for name in (best, worst)))
    patients = sum(one.n_patients for one in found.values())
    interval = Interval(gap, gap - half, gap + half, patients)
    return {"metric": metric, "best": best, "worst": worst, **interval.as_json(), "p_value": None}
