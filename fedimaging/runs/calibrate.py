"""`fedimaging calibrate`: what a study's privacy would cost and mean at every hospital, before anybody trains."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.errors import StudyError
from fedimaging.privacy.accounting import ACCOUNTANT, epsilon, epsilon_rdp
from fedimaging.privacy.ceilings import noise_to_signal, tpr_ceiling
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.group import patient_epsilon
from fedimaging.runs import hospitals
from fedimaging.runs.report_text import delta_text, epsilon_text
from fedimaging.site.simulated import workbench_of
from fedimaging.study.schema import Study


@dataclass(frozen=True)
class HospitalCalibration:
    """One hospital's private plan over all rounds, with its noised evaluations if any, and what it implies.

    `epsilon`, `epsilon_rdp` and the two ceilings are for the study's unit; `patient_epsilon` reads a record-level plan
    for a patient of `scans_per_patient` records (both None where the unit is the patient). `noise_to_signal` is that of
    one step. `tpr_at_*`: the best true positive rate that any membership attack on one unit can have there.
    """

    hospital: str
    patients: int
    units: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    epsilon: float
    epsilon_rdp: float
    delta: float
    noise_to_signal: float
    tpr_at_0_1_percent: float
    tpr_at_1_percent: float
    scans_per_patient: int | None
    patient_epsilon: float | None
    evaluations: int = 0


@dataclass(frozen=True)
class Calibration:
    """A whole study: what its hospitals share, and one row each."""

    study: str
    unit: str
    accountant: str
    clip_norm: float
    model: str
    trainable_parameters: int
    hospitals: tuple[HospitalCalibration, ...]

    def as_json(self) -> dict[str, Any]:
        """As a plain dictionary; an epsilon without limit is null, because JSON has no infinity."""
        rows = [{key: _no_infinity(value) for key, value in asdict(row).items()} for row in self.hospitals]
        return asdict(self) | {"hospitals": rows}


def calibrate_study(study: Study) -> Calibration:
    """Read the data, build the network, calibrate every training hospital's noise; nothing is trained or charged.

    Errors: StudyError for a study without privacy, or a plan that the hospitals' policy refuses; DataError;
    PrivacyError for what cannot be accounted for.
    """
    if study.privacy is None:
        raise StudyError("privacy=None leaves nothing to calibrate; give the study a privacy block, with target_epsilon=8 say.")
    dataset = hospitals.load_data(study)
    federation = hospitals.make_federation(study, dataset, Path(), "cpu")
    parameters = int(workbench_of(study, "cpu").initial.size)
    rows = []
    for name, plan in federation.plans.items():
        mine = federation.train_site == federation.names.index(name)
        rows.append(_calibration(study, name, plan, dataset, mine, parameters))
    return Calibration(
        study.name, study.privacy.unit, ACCOUNTANT, study.privacy.clip_norm, study.model.name, parameters, tuple(rows)
    )


def _calibration(
    study: Study, name: str, plan: DpPlan, dataset: Dataset, mine: np.ndarray, parameters: int
) -> HospitalCalibration:
    charges = hospitals.whole_cost(study, plan)
    return HospitalCalibration(
        hospital=name,
        patients=len(np.unique(dataset.patient_ids[mine])),
        units=plan.n_units,
        sample_rate=plan.sample_rate,
        steps=charges[0].steps,
        evaluations=len(charges) - 1,
        noise_multiplier=plan.noise_multiplier,
        epsilon=epsilon(charges, plan.delta),
        epsilon_rdp=epsilon_rdp(charges, plan.delta),
        delta=plan.delta,
        noise_to_signal=noise_to_signal(plan.noise_multiplier, plan.denominator, parameters),
        tpr_at_0_1_percent=tpr_ceiling(charges, 0.001),
        tpr_at_1_percent=tpr_ceiling(charges, 0.01),
        scans_per_patient=plan.scans_per_patient,
        patient_epsilon=None if plan.scans_per_patient is None else patient_epsilon(charges, plan.delta),
    )


def as_lines(calibration: Calibration) -> list[str]:
    """The calibration for a terminal: what is shared, the table, and what its columns mean."""
    by_record = calibration.unit == "record"
    head = ["hospital", "patients", *(["records"] if by_record else []), "sample rate", "steps", "sigma", "epsilon", "by RDP",
            *(["per patient"] if by_record else []), "delta", "noise/signal", "TPR at 0.1 %", "TPR at 1 %"]
    table = [head, *(_cells(row, by_record) for row in calibration.hospitals)]
    return [
        f"{calibration.study}: {calibration.unit}-level DP, {calibration.model} with "
        f"{calibration.trainable_parameters:,} trainable parameters, clip norm {calibration.clip_norm:g}",
        "",
        *_aligned(table),
        "",
        f"epsilon      for one {calibration.unit}, all rounds, by {calibration.accountant}; RDP is the check above it",
        *([_PER_PATIENT] if by_record else []),
        *([_EVALUATED.format(most)] if (most := max(row.evaluations for row in calibration.hospitals)) else []),
        "noise/signal norm of the noise over the greatest norm of the averaged gradient, in one step",
        f"TPR at x %   no attack finds a greater share of members at x % false alarms, one {calibration.unit} at a time",
    ]


_EVALUATED = "             and {} noised evaluations or calibrations, charged as if test patients were training patients too"
_PER_PATIENT = "per patient  epsilon for a patient who has the most records there (in brackets)"


def _cells(row: HospitalCalibration, by_record: bool) -> list[str]:
    whole = [f"{epsilon_text(row.patient_epsilon)} ({row.scans_per_patient})"] if by_record else []
    return [
        row.hospital, str(row.patients), *([str(row.units)] if by_record else []), f"{row.sample_rate:.4g}", str(row.steps),
        f"{row.noise_multiplier:.4g}", epsilon_text(row.epsilon), epsilon_text(row.epsilon_rdp), *whole,
        delta_text(row.delta), f"{row.noise_to_signal:.3g}", _percent(row.tpr_at_0_1_percent), _percent(row.tpr_at_1_percent),
    ]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Columns two spaces apart: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in table]
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(table, padded, strict=True)]


def _percent(share: float) -> str:
    """Rounded up: a printed ceiling is never below the one computed."""
    return f"{math.ceil(share * 1000 - 1e-9) / 10:.1f} %"


def _no_infinity(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value
