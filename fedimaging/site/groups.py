"""Groups of patients by columns of the manifest (sex, age bands, scanner …), and what a hospital releases of them.

A real hospital releases groups that the study names, whoever its own patients are: an age band, or a value that the study
lists. All others count as `not stated`. `noised`: totals of every group with Gaussian noise, charged as one evaluation more;
small groups need no rule, for the noise hides them. `metrics`: exact, and nothing for a group in which an answer has fewer
patients than the policy's minimum; the number of patients is rounded down to a multiple of it, so that what is missing
cannot be told by subtraction. Not differentially private.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.errors import DataError, StudyError
from fedimaging.privacy.released_metrics import (
    GROUP,
    PatientTotals,
    group_totals,
    overlap_totals,
    ranking_totals,
)
from fedimaging.results import Arrays
from fedimaging.study.schema import EvaluationSpec
from fedimaging.training.evaluate import Evaluated, quick_metrics
from fedimaging.training.tasks import Task

NOT_STATED = "not stated"
_CROSSED = "+"
_SEX = ("F", "M")


def groups_of(spec: EvaluationSpec, dataset: Dataset, column: str, *, strict: bool = True) -> np.ndarray:
    """The group (N,) str of each scan of a data set; see `groups_of_rows`."""
    return groups_of_rows(dataset.columns, dataset.patient_ids, column, spec.age_bands, strict=strict)


def groups_of_rows(
    columns: Mapping[str, Sequence[str] | np.ndarray], patient_ids: np.ndarray, column: str, bands: Sequence[float], *,
    strict: bool = True,
) -> np.ndarray:
    """The group (N,) str of each row: what the column says of its patient, at the first row that says anything; ages in the
    `bands`. A column of several joined by `+` says all of them, and nothing where one says nothing.

    Error: DataError for an age that is no number; where not `strict`, and for a column that is not there, nothing is said.
    """
    parts = [_one(columns, patient_ids, name, bands, strict) for name in columns_of(column)]
    if len(parts) == 1:
        return parts[0]
    joined = np.array([", ".join(each) for each in zip(*parts, strict=True)], dtype=str)
    return np.where(np.any([part == NOT_STATED for part in parts], axis=0), NOT_STATED, joined)


def columns_of(column: str) -> list[str]:
    """The manifest's columns that a column of `evaluation.groups` is made of."""
    return column.split(_CROSSED)


def public_groups(spec: EvaluationSpec, column: str) -> tuple[str, ...]:
    """Every group of the column that a real hospital counts by, in a fixed order, `not stated` last. They follow from the
    study alone. Error: StudyError for a column whose values the study does not list."""
    values = [_public_values(spec, name) for name in columns_of(column)]
    return (*(", ".join(each) for each in product(*values)), NOT_STATED)


def released_totals(found: Evaluated, task: Task, spec: EvaluationSpec, group_of: Callable[[str], np.ndarray]) -> PatientTotals:
    """Totals of all groups of all columns of the study, before their noise. `group_of(column)`: the group (S,) of each scan
    that was evaluated."""
    patient = found.arrays.get("patient", np.zeros(0, np.int64))
    masks = {column: _masks(spec, column, group_of(column)) for column in spec.groups}
    if task.needs_mask:
        dice = found.arrays.get("dice", np.zeros((0, task.out_channels - 1)))
        return group_totals(lambda keep: overlap_totals(dice, patient, keep), masks)
    scores = found.arrays.get("scores", np.zeros((0, task.out_channels)))
    labels = found.arrays.get("labels", np.zeros((0, task.out_channels) if task.multilabel else 0, np.int64))
    return group_totals(lambda keep: ranking_totals(scores, labels, patient, task.kind, keep), masks)


def released_metrics(
    found: Evaluated, task: Task, spec: EvaluationSpec, group_of: Callable[[str], np.ndarray], least: int
) -> Arrays:
    """For each column `by.` + its name, float32 (V, 2): patients, rounded down to a multiple of `least`, and the metric of the
    live view (AUROC or Dice) of each public group; both NaN where an answer has fewer than `least` patients."""
    return {
        GROUP + column: np.array([_figure(found, task, mask, least) for mask in _masks(spec, column, group_of(column))],
                                 dtype=np.float32).reshape(-1, 2)
        for column in spec.groups
    }  # fmt: skip


def group_shapes(task_kind: str, outputs: int, spec: EvaluationSpec, bins: int) -> dict[str, tuple[int, ...]]:
    """The shape of each noised array of groups that a hospital can send."""
    one: tuple[int, ...] = (outputs - 1, 2) if task_kind == "segmentation" else (1 if task_kind == "binary" else outputs, 2, bins)
    return {GROUP + column: (len(public_groups(spec, column)), *one) for column in spec.groups}


def _figure(found: Evaluated, task: Task, mask: np.ndarray, least: int) -> tuple[float, float]:
    arrays = {name: array[mask] for name, array in found.arrays.items()}
    patients = len(np.unique(arrays["patient"])) if len(mask) else 0
    if patients < least or min(_patients_per_answer(arrays, task)) < least:
        return math.nan, math.nan
    (value,) = quick_metrics(task, arrays).values()
    return patients // least * least, value


def _patients_per_answer(arrays: Arrays, task: Task) -> list[int]:
    """How many patients have a scan with each answer (class, or yes and no of each label); for segmentation, a Dice."""
    patient = arrays["patient"]
    if task.needs_mask:
        return [len(np.unique(patient[np.isfinite(column)])) for column in arrays["dice"].T]
    labels = arrays["labels"]
    answers = [labels == k for k in range(task.out_channels)]
    if task.multilabel:
        answers = [side for column in labels.T for side in (column > 0.5, column <= 0.5)]
    return [len(np.unique(patient[answer])) for answer in answers]


def _masks(spec: EvaluationSpec, column: str, group: np.ndarray) -> list[np.ndarray]:
    """Of each public group; a group that is not public counts as not stated."""
    names = public_groups(spec, column)
    known = np.where(np.isin(group, names), group, NOT_STATED)
    return [known == name for name in names]


def _public_values(spec: EvaluationSpec, column: str) -> Sequence[str]:
    if column in spec.group_values:
        return spec.group_values[column]
    if column == "age":
        edges = spec.age_bands
        return [_band(edges, place) for place in range(len(edges) + 1)]
    if column == "sex":
        return _SEX
    raise StudyError(
        f"evaluation.groups names {column!r}, whose values hospitals cannot know: give evaluation.group_values: "
        f"{{{column}: [its values]}}, or leave the column out."
    )


def _one(
    columns: Mapping[str, Sequence[str] | np.ndarray], patient_ids: np.ndarray, column: str, bands: Sequence[float], strict: bool
) -> np.ndarray:
    _, member = np.unique(patient_ids, return_inverse=True)
    of_patient = np.full(int(member.max()) + 1 if len(member) else 0, NOT_STATED, dtype=object)
    if column not in columns and not strict:
        return of_patient[member].astype(str)
    texts = np.char.strip(np.asarray(columns[column]).astype(str))
    stated = np.flatnonzero(texts != "")[::-1]  # from the last to the first: the first is what stays
    values = [_age_band(text, bands, strict) if column == "age" else text for text in texts[stated].tolist()]
    of_patient[member[stated]] = np.array(values, dtype=object)
    return of_patient[member].astype(str)


def _age_band(text: str, edges: Sequence[float], strict: bool) -> str:
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not math.isfinite(age):
        if not strict:
            return NOT_STATED
        raise DataError(f"age={text!r} is no number; mend the manifest, or leave age out of evaluation.groups.")
    return _band(edges, int(np.searchsorted(edges, age, side="right")))


def _band(edges: Sequence[float], place: int) -> str:
    if place == 0:
        return f"under {edges[0]:g}"
    if place == len(edges):
        return f"{edges[-1]:g} and over"
    return f"{edges[place - 1]:g} to under {edges[place]:g}"
