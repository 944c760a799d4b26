"""Scored scans of several hospitals laid end to end, as every table over scores needs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedimaging.results import Arrays, SiteEvaluation
from fedimaging.study.schema import Study
from fedimaging.training.bootstrap import Statistic
from fedimaging.training.metrics import classification_statistics
from fedimaging.training.segmentation_metrics import segmentation_statistics


@dataclass(frozen=True)
class Scored:
    """`arrays`: as `training.evaluate.Evaluated.arrays`, rows are scans (S, …), without `patient`. `patients` (S,) str:
    pseudonyms, told apart between hospitals."""

    arrays: Arrays
    patients: np.ndarray

    @property
    def n_patients(self) -> int:
        """How many patients."""
        return len(np.unique(self.patients))

    def only(self, keep: np.ndarray) -> "Scored":
        """The scans at these places (bool, or integers in any order)."""
        return Scored({name: array[keep] for name, array in self.arrays.items()}, self.patients[keep])


def laid_end_to_end(evaluations: Sequence[SiteEvaluation]) -> Scored:
    """The scans of these evaluations, all of which must hold predictions."""
    return _joined([(e.site, e.predictions) for e in evaluations])


def validation_of(evaluations: Sequence[SiteEvaluation]) -> Scored:
    """The same of their validation scans."""
    return _joined([(e.site, e.validation) for e in evaluations])


def _joined(parts: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Scored:
    names = [name for name in parts[0][1] if name != "patient"]
    arrays = {name: np.concatenate([part[name] for _, part in parts]) for name in names}
    patients = np.concatenate([np.char.add(f"{site}/", part["patient"].astype(str)) for site, part in parts])
    return Scored(arrays, patients)


def statistics_of(study: Study, scored: Scored) -> dict[str, Statistic]:
    """Metric -> the function that gives it for many weightings (R, S) of these scans."""
    if study.task.kind == "segmentation":
        return segmentation_statistics(scored.arrays)
    return classification_statistics(scored.arrays["scores"], scored.arrays["labels"], study.task.kind)
