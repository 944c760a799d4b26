"""Frozen records that travel between packages: plain facts, no behaviour beyond writing themselves as JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
"""Named float32 arrays: trainable tensors of a model, keyed by parameter name, in the model's own order."""


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval (bootstrap over patients). NaN `value`: not defined, e.g. one class only."""

    value: float
    low: float
    high: float
    n_patients: int

    def as_json(self) -> dict[str, float | int | None]:
        """NaN becomes null: JSON has no NaN."""
        return {k: (None if isinstance(v, float) and v != v else v) for k, v in asdict(self).items()}


@dataclass(frozen=True)
class PrivacySpent:
    """What one hospital has spent on its patients, as its ledger says it.

    For unit "record", `scans_per_patient` is the most records that one patient has, and `patient_epsilon` what the same
    charges mean for such a patient. None: the unit is the patient, or some charge states no bound. Infinity: no limit.
    `evaluations` of the `steps` were noised evaluations and `calibrations` noised calibrations; the noise multiplier and
    sample rate are those of training.
    """

    unit: str
    epsilon: float
    delta: float
    budget_epsilon: float
    accountant: str
    steps: int
    noise_multiplier: float
    sample_rate: float
    epsilon_rdp: float
    noise: str
    scans_per_patient: int | None = None
    patient_epsilon: float | None = None
    evaluations: int = 0
    calibrations: int = 0

    def as_json(self) -> dict[str, Any]:
        """As a plain dictionary. JSON has no infinity: a patient_epsilon without limit becomes null beside its
        scans_per_patient."""
        limitless = self.patient_epsilon is not None and math.isinf(self.patient_epsilon)
        return asdict(self) | ({"patient_epsilon": None} if limitless else {})


@dataclass(frozen=True)
class SiteUpdate:
    """One hospital's reply to one round: the change of the shared trainable tensors (end minus start), nothing else.

    `delta` is one float32 vector (P,), laid out as `models.state.StateLayout` says.
    """

    site: str
    round: int
    delta: np.ndarray


@dataclass(frozen=True)
class SiteEvaluation:
    """One hospital's evaluation of the global model on its own test patients.

    `release` is the mode of the hospital's policy. `predictions` (scores per scan, pseudonymous) are there only for
    `scores`, as in a simulation; `totals` (`privacy/released_metrics.py`) only for `noised`, where `metrics` follow from
    them, `loss` is NaN and `n_patients` is an estimate. For `coarsened` all figures are rounded.

    Of the final model there is more where study and policy say so: `validation`, the same as `predictions` or `totals` for
    validation patients; `groups`, what is released of groups of test patients (`site/groups.py`).
    """

    site: str
    round: int
    loss: float
    n_patients: int
    metrics: Mapping[str, float]
    predictions: Arrays = field(default_factory=dict)
    release: str = "metrics"
    totals: Arrays = field(default_factory=dict)
    validation: Arrays = field(default_factory=dict)
    groups: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class SiteCalibration:
    """What one hospital releases of its validation patients for a model's temperature (`privacy/tempering.py`): `sums` (T,)
    float32, one a temperature of the public grid, with Gaussian noise of deviation `noise_std`; 0 where they are exact."""

    site: str
    round: int
    sums: np.ndarray
    noise_std: float


@dataclass(frozen=True)
class RoundResult:
    """One line of `rounds.jsonl`. `weights`: of each hospital in the mean, where they are no public constants."""

    round: int
    sites: tuple[str, ...]
    refused: Mapping[str, str]
    metrics: Mapping[str, float]
    site_metrics: Mapping[str, Mapping[str, float]]
    epsilon: Mapping[str, float]
    update_norm: float
    seconds: Mapping[str, float]
    bytes_per_site: int
    weights: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)
