"""What may leave of an evaluation: figures on a public grid, or counts over patients with Gaussian noise.

`coarsened` rounds. That hides small differences from a reader and is NOT differentially private: a figure on the edge
of its grid still turns on one patient.

`noised` is differentially private for neighbours that differ by one whole test patient. Each patient, with any number
of scans, adds one vector of at most `sensitivity` in Euclidean norm (the mean of the vectors of the patient's scans), so
that a release is one Gaussian mechanism without sampling, charged as `release_charge`. Whatever is computed from the
noised totals (AUROC, Dice, intervals) is post-processing.

Test patients are other people than training patients, because splits are by patient, and a person who is only tested is
touched by evaluations alone. They are charged to the same ledger all the same: it adds all charges up as if one person
were in both, which is never less than the truth, and stays true when a later study trains on those it tested on.

Source: Dwork and Roth 2014, section 3 (sums and histograms); the accounting is `accounting.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedimaging.errors import PrivacyError, bad_value
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.noise import NoiseSource
from fedimaging.results import Arrays

EDGES = 1 / (1 + np.exp(-0.75 * np.arange(-7, 8)))
"""Public borders (15,) between the 16 bins of a score, even steps of log-odds: scores crowd near 0 and 1. The middle one
is 0.5; a score on a border lies in the lower bin, as a tie is no positive."""
BINS = len(EDGES) + 1
GROUP = "by."
"""Before a column's name, in what is released of groups."""


@dataclass(frozen=True)
class PatientTotals:
    """Sums over patients before their noise, by name, float64. One patient moves all of them together by at most
    `sensitivity` (Euclidean norm, patient added or removed)."""

    arrays: Arrays
    sensitivity: float


def ranking_totals(
    scores: np.ndarray, labels: np.ndarray, patient: np.ndarray, kind: str, among: np.ndarray | None = None
) -> PatientTotals:
    """Patients by score and truth: all that ranking metrics and those at the threshold 0.5 need.

    scores (S, K) probabilities, labels (S,) class numbers or (S, L) zeros and ones for `multilabel`, patient (S,).
    Gives `cells` (C, 2, BINS): for each of C columns (1 for binary, the classes one against the rest, the labels) the
    patients without and with it, by bin of the score; for `multiclass` also `confusion` (K, K), truth by prediction.
    A scan is one 1 in each column and in the confusion, so the sensitivity is sqrt(C), or sqrt(K + 1). `among` (S,) bool: only
    these scans are counted, each for its share of all scans of the patient.
    """
    scores = np.nan_to_num(scores.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    truth_SC, scores_SC = _columns(scores, labels, kind)
    places_SC = truth_SC * BINS + np.searchsorted(EDGES, scores_SC, side="left")
    shares = _shares(patient) if among is None else _shares(patient) * among
    cells = [np.bincount(places, shares, minlength=2 * BINS) for places in places_SC.T]
    arrays: Arrays = {"cells": np.reshape(cells, (len(cells), 2, BINS))}
    if kind == "multiclass":
        classes = scores.shape[1]
        pairs = labels.astype(np.int64) * classes + scores.argmax(1)
        arrays["confusion"] = np.bincount(pairs, shares, minlength=classes * classes).reshape(classes, classes)
    return PatientTotals(arrays, math.sqrt(len(cells) + (kind == "multiclass")))


def overlap_totals(dice: np.ndarray, patient: np.ndarray, among: np.ndarray | None = None) -> PatientTotals:
    """Sum of Dice and number of patients that have one, for each foreground class: `overlap` (K-1, 2).

    dice (S, K-1) in [0, 1], NaN where a scan neither has the class nor was given it. A patient's Dice is the mean over
    the patient's scans that have one. The sensitivity is sqrt(2 (K-1)). `among`: as for `ranking_totals`.
    """
    rows = []
    for column in dice.T:
        there = np.isfinite(column)
        shares = _shares(patient[there]) if among is None else _shares(patient[there]) * among[there]
        rows.append([float(shares @ np.clip(column[there], 0.0, 1.0)), float(shares.sum())])
    return PatientTotals({"overlap": np.array(rows)}, math.sqrt(2 * len(rows)))


def group_totals(
    totals_among: Callable[[np.ndarray], PatientTotals], groups: Mapping[str, Sequence[np.ndarray]]
) -> PatientTotals:
    """Totals of groups: for each column `GROUP` + its name, those of its groups one after the other (V, ...), without a
    confusion.

    `totals_among(keep)`: the totals of these scans (S,) bool, as above. `groups`: column -> a mask (S,) for each group, of which
    no two share a scan. A patient's scans have shares that add up to one, in whatever groups of a column they are; so a patient
    moves the totals of one column by at most the sensitivity s of ungrouped totals, and those of G columns together by at most
    s * sqrt(G): each further column costs noise in all of them.
    """
    arrays, reach = {}, 0.0
    for column, masks in groups.items():
        parts = [totals_among(mask) for mask in masks]
        name = "overlap" if "overlap" in parts[0].arrays else "cells"
        arrays[GROUP + column] = np.stack([part.arrays[name] for part in parts])
        reach = parts[0].sensitivity if name == "overlap" else math.sqrt(len(parts[0].arrays[name]))
    return PatientTotals(arrays, reach * math.sqrt(len(groups)))


def totals_shapes(kind: str, outputs: int) -> dict[str, tuple[int, ...]]:
    """What `noised` gives for a task of this kind whose network has so many outputs: name -> shape."""
    columns = 1 if kind == "binary" else outputs
    shapes: dict[str, tuple[int, ...]] = {"noise_std": ()}
    if kind == "segmentation":
        return shapes | {"overlap": (outputs - 1, 2)}
    return shapes | {"cells": (columns, 2, BINS)} | ({"confusion": (outputs, outputs)} if kind == "multiclass" else {})


def release_charge(noise_multiplier: float) -> Charge:
    """What one noised release costs: a Gaussian over all patients, without sampling."""
    return Charge(noise_multiplier, 1.0, 1, "patient")


def noised(totals: PatientTotals, noise_multiplier: float, noise: NoiseSource, step: int) -> Arrays:
    """The totals, float32, each number with noise N(0, (noise_multiplier * sensitivity)²), and that deviation as
    `noise_std` (shape ()), which is public.

    Guarantee: costs `release_charge(noise_multiplier)`, which the caller must have reserved. `step` must not repeat within
    a `noise`, nor be one of its training steps (those count from 0). Error: PrivacyError where there is no noise.
    """
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise PrivacyError(bad_value("evaluation_noise_multiplier", noise_multiplier, "must be a finite number above 0"))
    std = noise_multiplier * totals.sensitivity
    tensors = [torch.from_numpy(array.astype(np.float64)) for array in totals.arrays.values()]
    noise.add_gaussian(tensors, std, step)
    arrays = {name: tensor.numpy().astype(np.float32) for name, tensor in zip(totals.arrays, tensors, strict=True)}
    return arrays | {"noise_std": np.array(std, np.float32)}


def coarsened(metrics: Mapping[str, float], step: float) -> dict[str, float]:
    """Each figure rounded to the nearest multiple of `step`, a public number. Not differentially private."""
    return {name: round(value / step) * step if math.isfinite(value) else math.nan for name, value in metrics.items()}


def _columns(scores: np.ndarray, labels: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(truth (S, C) of 0 and 1, scores (S, C)), one column for each answer that is ranked."""
    if kind == "multilabel":
        return (labels > 0.5).astype(np.int64), scores
    if kind == "binary":
        return (labels == 1).astype(np.int64)[:, None], scores[:, 1:2]
    return (labels[:, None] == np.arange(scores.shape[1])).astype(np.int64), scores


def _shares(patient: np.ndarray) -> np.ndarray:
    """(S,) one over the number of scans of each scan's patient: a patient weighs one, however many scans there are."""
    _, member, counts = np.unique(patient, return_inverse=True, return_counts=True)
    return 1.0 / counts[member]
