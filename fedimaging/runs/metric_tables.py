"""Test metrics of a group of hospitals as a table, from whatever their policies let leave."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedimaging.privacy.released_metrics import totals_shapes
from fedimaging.results import Interval, SiteEvaluation
from fedimaging.runs.scored import laid_end_to_end
from fedimaging.site.policy import SitePolicy
from fedimaging.study.schema import SimulatedHospitals, Study
from fedimaging.training.counted_metrics import added_up, counted_metrics
from fedimaging.training.metrics import classification_metrics
from fedimaging.training.segmentation_metrics import segmentation_intervals

Table = dict[str, dict[str, Any]]
"""Metric -> interval as JSON."""


def metric_table(study: Study, evaluations: Sequence[SiteEvaluation]) -> Table:
    """Metrics over the test patients of all these hospitals.

    From scores: with intervals over patients. From noised totals, added up: with intervals that hold the noise too. From
    metrics alone, exact or rounded: their mean weighted by patients, without an interval. Where hospitals differ in what
    they release, the first of these kinds that any has is shown. Totals that no hospital of this study can have are left
    out.
    """
    scored = [e for e in evaluations if e.predictions]
    noised = [e for e in evaluations if possible_totals(study, e.totals)]
    table: Mapping[str, Interval]
    if scored:
        table = _from_scores(study, scored)
    elif noised:
        totals = added_up([e.totals for e in noised])
        table = counted_metrics(totals, resamples=study.evaluation.resamples, seed=study.seed)
    else:
        table = _from_metrics(evaluations)
    return {name: interval.as_json() for name, interval in table.items()}


def quick_metric(study: Study) -> str:
    """The metric that hospitals release which release no scores and no totals."""
    return "dice" if study.task.kind == "segmentation" else "auroc"


def release_words(policy: SimulatedHospitals) -> str:
    """What left of the evaluations on test patients, for a reader of the report."""
    rounding = SitePolicy()
    return {
        "none": "Test patients: nothing of an evaluation left any hospital.",
        "coarsened": (
            f"Test patients: metrics left each hospital rounded to steps of {rounding.evaluation_step:g}, and none for fewer "
            f"than {rounding.evaluation_least_patients} test patients. Rounding is not differential privacy: it carries no ε."
        ),
        "noised": (
            "Test patients: counts with Gaussian noise left each hospital (noise multiplier "
            f"{policy.evaluation_noise_multiplier:g} for one patient with all scans), each charged to its ledger as if the "
            "test patients had been training patients too. Metrics follow from these counts; their intervals hold the noise."
        ),
        "metrics": "Test patients: the reported metrics are computed on them without noise.",
        "scores": "Test patients: the reported metrics are computed on them without noise, from a score for each scan.",
    }[policy.release_evaluation]


def _from_scores(study: Study, found: Sequence[SiteEvaluation]) -> Mapping[str, Interval]:
    scans = laid_end_to_end(found)
    resamples, seed = study.evaluation.resamples, study.seed
    if study.task.kind == "segmentation":
        return segmentation_intervals(scans.arrays, scans.patients, resamples=resamples, seed=seed)
    return classification_metrics(
        scans.arrays["scores"], scans.arrays["labels"], scans.patients, kind=study.task.kind, resamples=resamples, seed=seed
    )


def possible_totals(study: Study, totals: Mapping[str, np.ndarray]) -> bool:
    """Finite float32 totals of the task's own shapes: a hospital that lies spoils no table but its own."""
    shapes = totals_shapes(study.task.kind, study.task.n_outputs)
    return (
        {name: array.shape for name, array in totals.items()} == shapes
        and all(array.dtype == np.float32 and bool(np.isfinite(array).all()) for array in totals.values())
        and float(totals["noise_std"]) > 0
    )


def _from_metrics(evaluations: Sequence[SiteEvaluation]) -> Mapping[str, Interval]:
    table = {}
    for name in sorted({name for e in evaluations for name in e.metrics}):
        known = [(e.metrics[name], e.n_patients) for e in evaluations if math.isfinite(e.metrics.get(name, math.nan))]
        patients = sum(n for _, n in known)
        value = sum(value * n for value, n in known) / patients if patients else math.nan
        table[name] = Interval(value, math.nan, math.nan, patients)
    return table
