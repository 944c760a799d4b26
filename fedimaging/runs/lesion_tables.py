"""Segmentation beyond Dice: lesion by lesion, case by case, and how far measured volumes agree with true ones.

From predictions scan by scan, so from simulations alone: real hospitals release the overlap of whole classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedimaging.results import Interval, SiteEvaluation
from fedimaging.runs.scored import Scored, laid_end_to_end
from fedimaging.study.schema import Study
from fedimaging.training.agreement import agreement
from fedimaging.training.bootstrap import interval
from fedimaging.training.operating_point import ratio, with_exact_ends

_QUARTILES = (0.1, 0.25, 0.5, 0.75)
_MOST_POINTS = 400  # of a Bland-Altman chart


def lesion_tables(
    study: Study, evaluations: Sequence[SiteEvaluation], spacing_mm: Sequence[float] | None
) -> dict[str, Any] | None:
    """`segmentation` of report.json over the training hospitals' test scans: `unit` of sizes, `classes` (name -> `lesions`,
    `cases`, `sizes`) and `hospitals` (name -> class -> its lesion and size figures). None for other tasks, or without scans.

    `lesions`: `n`, `sensitivity` (of lesions) and `false_per_case`. `cases`: `dice` (10th, 25th, 50th, 75th percentile of the
    scans' Dice), `sensitivity` (scans with a lesion in which one was found) and `specificity` (scans without, in which nothing
    was). `sizes`: Bland-Altman `bias`, `lower`, `upper` of predicted minus true, and `points` ([mean, difference] of scans).
    """
    inside = [e for e in evaluations if e.site not in study.hospitals.held_out and "lesions" in e.predictions]
    if study.task.kind != "segmentation" or not inside:
        return None
    factor, unit = _unit(spacing_mm, len(study.data.image_size))
    names = _class_names(study)

    def tables(scans: Scored, *, whole: bool) -> dict[str, Any]:
        return {name: _of_class(study, scans, k, factor, whole=whole) for k, name in enumerate(names)}

    return {
        "unit": unit, "classes": tables(laid_end_to_end(inside), whole=True),
        "hospitals": {e.site: tables(laid_end_to_end([e]), whole=False) for e in evaluations if "lesions" in e.predictions},
    }


def _class_names(study: Study) -> list[str]:
    names = study.task.class_names
    return [names[k] if names else str(k) for k in range(1, study.task.classes)]


def _unit(spacing_mm: Sequence[float] | None, dims: int) -> tuple[float, str]:
    """What a pixel or voxel counts, and in which unit."""
    if spacing_mm is None:
        return 1.0, "voxels" if dims == 3 else "pixels"
    size = math.prod(spacing_mm)
    return (size / 1000, "ml") if dims == 3 else (size / 100, "cm²")


def _of_class(study: Study, scans: Scored, k: int, factor: float, *, whole: bool) -> dict[str, Any]:
    column = {name: array[:, k].astype(np.float64) for name, array in scans.arrays.items()}
    true, measured = column["size_true"] * factor, column["size_predicted"] * factor
    sizes = agreement(measured, true, scans.patients, resamples=study.evaluation.resamples, seed=study.seed)
    found: dict[str, Any] = {
        "lesions": {
            "n": int(column["lesions"].sum()),
            "sensitivity": _share(study, scans, column["lesions_found"], column["lesions"]),
            "false_per_case": _ratio(study, scans, column["false_lesions"], np.ones(len(true))),
        },
        "sizes": {name: getattr(sizes, name).as_json() for name in ("bias", "lower", "upper")},
    }
    if not whole:
        return found
    chosen = np.random.default_rng(study.seed).permutation(len(true))[:_MOST_POINTS]
    points = [[round(float(m + t) / 2, 4), round(float(m - t), 4)] for m, t in zip(measured[chosen], true[chosen], strict=True)]
    return found | {"cases": _cases(study, scans, column), "sizes": {**found["sizes"], "points": points}}


def _cases(study: Study, scans: Scored, column: Mapping[str, np.ndarray]) -> dict[str, Any]:
    ill = column["lesions"] > 0
    defined = column["dice"][np.isfinite(column["dice"])]
    quartiles = {f"{100 * q:.0f}": float(np.quantile(defined, q)) if len(defined) else None for q in _QUARTILES}
    return {
        "scans": len(ill), "dice": quartiles,
        "sensitivity": _share(study, scans, ill & (column["lesions_found"] > 0), ill),
        "specificity": _share(study, scans, ~ill & (column["size_predicted"] == 0), ~ill),
    }


def _share(study: Study, scans: Scored, above: np.ndarray, below: np.ndarray) -> dict[str, Any]:
    return with_exact_ends(_interval(study, scans, above, below)).as_json()


def _ratio(study: Study, scans: Scored, above: np.ndarray, below: np.ndarray) -> dict[str, Any]:
    return _interval(study, scans, above, below).as_json()


def _interval(study: Study, scans: Scored, above: np.ndarray, below: np.ndarray) -> Interval:
    """A ratio of sums over scans, with its interval over patients; the number of patients is of those that count below."""
    statistic = ratio(above, below)
    patients = len(np.unique(scans.patients[below > 0]))
    point = float(statistic(np.ones((1, len(below))))[0])
    found = interval(point, statistic, scans.patients, resamples=study.evaluation.resamples, seed=study.seed)
    return Interval(found.value, found.low, found.high, patients)
