"""reference.json: how test patients looked to the released model, as aggregates; what monitoring compares new images with.

    schema              "fedimaging reference 1"
    minimum_count       no cell holds fewer patients
    intensity           the study's, which the ranges of input features follow
    class_names         names of the columns of scores
    n_patients          of the training hospitals' test patients; null below the minimum, and where `counts_rounded_down` at
                        least so many
    overall             {"input": {feature: histogram}, "scores": {class: histogram}}; a histogram is {"edges", "shares"} or null
    groups              column -> group -> {"n_patients", "input", "scores"}; only groups that may be shown
    performance         "test", "held_out": metric -> interval of the report, with n_patients by `cells.Counting`
    groups_performance  column -> group -> metric -> interval
    strangeness         {"input", "features"}: `strangeness.fitted` or null, "flag_above": a quantile
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.release.cells import Counting, histogram, shown_groups
from fedimaging.release.features import INPUT_FEATURES, feature_range, input_features
from fedimaging.release.inference import probabilities
from fedimaging.release.source import Source
from fedimaging.release.strangeness import FLAG_ABOVE, fitted
from fedimaging.runs.groups import TOO_FEW
from fedimaging.site.groups import NOT_STATED, groups_of

SCHEMA = "fedimaging reference 1"
_INPUT_EDGES, _SCORE_EDGES = 101, 21  # fine, for many features of one sort of scan lie close together; cells are joined anyway
_BATCH = 64


def reference_of(source: Source, counting: Counting) -> dict[str, Any]:
    """The tree of reference.json. Patients are told apart within their hospital."""
    rows = source.test_rows()
    data, kind = source.dataset, source.study.task.kind
    patients = _patients(source, rows)
    outputs, features = outputs_and_features(source.bench.model, data.images, rows)
    scores = image_scores(probabilities(outputs, kind, source.calibration), kind)
    inputs = _inputs(source, rows)
    everybody = np.ones(len(rows), bool)
    groups: dict[str, Any] = {}
    for column in source.study.evaluation.groups:
        of_row = groups_of(source.study.evaluation, data, column)[rows]
        groups[column] = {
            name: {"n_patients": counting.number(len(np.unique(patients[of_row == name])))}
            | _histograms(source, inputs, scores, patients, of_row == name)
            for name in shown_groups(of_row, patients, (NOT_STATED, TOO_FEW), counting.least)
        }
    return {
        "schema": SCHEMA, "minimum_count": counting.least, "intensity": source.study.data.intensity,
        "class_names": list(source.bench.task.class_names), "n_patients": counting.number(len(np.unique(patients))),
        "counts_rounded_down": counting.coarse,
        "overall": _histograms(source, inputs, scores, patients, everybody), "groups": groups,
        "performance": {key: shown_table(source.report.get(key) or {}, counting) for key in ("test", "held_out")},
        "groups_performance": group_performance(source, counting),
        "strangeness": {
            "input": fitted(inputs, patients, counting.least), "features": fitted(features, patients, counting.least),
            "flag_above": FLAG_ABOVE,
        },
    }


def outputs_and_features(network: nn.Module, images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, K, *) outputs and (N, F) penultimate features of these rows of the images (M, C, *spatial). Features are what
    enters the layer that owns the network's last parameter, averaged over space where it has some."""
    seen: list[Tensor] = []
    handle = _last(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    outputs, features = [], []
    try:
        with torch.no_grad():
            for first in range(0, len(rows), _BATCH):
                seen.clear()
                x = torch.from_numpy(np.array(images[rows[first : first + _BATCH]]))
                outputs.append(network(x).numpy())
                features.append(seen[-1].flatten(2).mean(2).numpy() if seen[-1].ndim > 2 else seen[-1].numpy())
    finally:
        handle.remove()
    return np.concatenate(outputs), np.concatenate(features)


def _last(network: nn.Module) -> nn.Module:
    owner = [name for name, _ in network.named_parameters()][-1].rpartition(".")[0]
    return network.get_submodule(owner)


def image_scores(probability: np.ndarray, kind: str) -> np.ndarray:
    """(N, K) of each image: the probabilities themselves; for segmentation the share of pixels given to each class."""
    if kind != "segmentation":
        return probability
    labels = probability.argmax(1).reshape(len(probability), -1)
    return np.stack([(labels == k).mean(1) for k in range(probability.shape[1])], axis=1)


def shown_table(table: Any, counting: Counting) -> dict[str, Any]:
    """A metric table of the report without figures of fewer patients than the minimum."""
    shown = {}
    for metric, one in table.items():
        if isinstance(one, dict) and (one.get("n_patients") or 0) >= counting.least:
            shown[metric] = {key: one.get(key) for key in ("value", "low", "high")} | {
                "n_patients": counting.number(one["n_patients"])
            }
    return shown


def group_performance(source: Source, counting: Counting) -> dict[str, Any]:
    """Column -> group -> shown table; groups of too few are left out."""
    found = source.report.get("groups") or {}
    tables = {
        column: {name: shown_table(table, counting) for name, table in groups.items() if name != TOO_FEW}
        for column, groups in found.items()
    }
    return {column: {name: table for name, table in groups.items() if table} for column, groups in tables.items()}


def _histograms(
    source: Source, inputs: np.ndarray, scores: np.ndarray, patients: np.ndarray, chosen: np.ndarray
) -> dict[str, Any]:
    least = source.limits.minimum_count

    def of(values: np.ndarray, low: float, high: float, edges: int) -> dict[str, Any] | None:
        return histogram(values[chosen], patients[chosen], np.linspace(low, high, edges), least)

    return {
        "input": {
            name: of(inputs[:, k], *feature_range(name, source.study.data.intensity), _INPUT_EDGES)
            for k, name in enumerate(INPUT_FEATURES)
        },
        "scores": {name: of(scores[:, k], 0.0, 1.0, _SCORE_EDGES) for k, name in enumerate(source.bench.task.class_names)},
    }


def _patients(source: Source, rows: np.ndarray) -> np.ndarray:
    names = np.array(source.federation.names)[source.federation.test_site[rows]]
    return np.char.add(np.char.add(names, "/"), source.dataset.patient_ids[rows].astype(str))


def _inputs(source: Source, rows: np.ndarray) -> np.ndarray:
    blocks = [rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)]
    intensity = source.study.data.intensity
    return np.concatenate([input_features(np.array(source.dataset.images[block]), intensity) for block in blocks])
