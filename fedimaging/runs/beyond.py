"""What report.json says beyond one figure over everybody: the matrix, leave-one-hospital-out, held-out hospitals
beside the others, the worst hospital and group, the operating point, the decision curve, and lesions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.results import SiteEvaluation
from fedimaging.runs.groups import least_shown
from fedimaging.runs.leave_one_out import LeftOut, leave_one_out
from fedimaging.runs.lesion_tables import lesion_tables
from fedimaging.runs.matrix import matrix
from fedimaging.runs.operating import decision_curves, operating_point
from fedimaging.runs.scored import laid_end_to_end, statistics_of
from fedimaging.runs.worst import worst_group, worst_hospital
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.bootstrap import interval


def released_blocks(study: Study, main: Sequence[SiteEvaluation]) -> dict[str, Any]:
    """The blocks `operating_point` and `decision_curve`, which follow from what hospitals release, in a deployment too."""
    return {"operating_point": operating_point(study, main), "decision_curve": decision_curves(study, main)}


def evaluation_blocks(
    study: Study, dataset: Dataset, federation: SimulatedFederation, report: Mapping[str, Any], main: Sequence[SiteEvaluation],
    left_out: Sequence[LeftOut],
) -> dict[str, Any]:
    """All blocks of a simulation: `matrix`, `leave_one_out`, `held_out_gap`, `worst_hospital`, `worst_group`, `segmentation`, and
    the released ones; null where a run has none."""
    metric = report["task"]["primary_metric"]
    return {
        "matrix": matrix(report),
        "leave_one_out": leave_one_out(study, metric, federation, main, left_out) if left_out else None,
        "held_out_gap": _held_out_gap(study, metric, main),
        "worst_hospital": worst_hospital(report, least_shown(study)),
        "worst_group": worst_group(report),
        "segmentation": lesion_tables(study, main, dataset.spacing_mm),
        **released_blocks(study, main),
    }


def _held_out_gap(study: Study, metric: str, main: Sequence[SiteEvaluation]) -> dict[str, Any] | None:
    """The metric over the training hospitals' test patients minus that over held-out patients; their patients differ, and are
    drawn together. None without scores of both."""
    scored = [e for e in main if e.predictions]
    outside = [e.site in study.hospitals.held_out for e in scored]
    if len(set(outside)) < 2:
        return None
    scans = laid_end_to_end(scored)
    away = np.repeat(outside, [len(e.predictions["patient"]) for e in scored]).astype(np.float64)
    statistic = statistics_of(study, scans)[metric]

    def gap(weights_RS: np.ndarray) -> np.ndarray:
        return statistic(weights_RS * (1 - away)) - statistic(weights_RS * away)

    point = float(gap(np.ones((1, len(away))))[0])
    return interval(point, gap, scans.patients, resamples=study.evaluation.resamples, seed=study.seed).as_json()
