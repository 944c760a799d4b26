"""What a study means at one hospital: which data it reads, the private plan of its rounds, and what all of them cost."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.data.manifest import Keep
from fedimaging.data.prepare import prepare
from fedimaging.data.spec import DataSpec
from fedimaging.errors import StudyError
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.dpsgd import DpPlan, plan_for
from fedimaging.privacy.released_metrics import release_charge
from fedimaging.privacy.spec import PrivacySpec
from fedimaging.privacy.units import group_units, most_records
from fedimaging.study.schema import Study
from fedimaging.training.balance import mean_relative, relative_rates


def prepare_data(
    study: Study, spec: DataSpec | None = None, *, keep: Keep | None = None, cache_dir: Path | None = None
) -> Dataset:
    """Decode (once) and open the data as the study wants them: the study's own, or a hospital's (`spec`).

    `keep` and `cache_dir` as in `data.prepare`. Error: DataError.
    """
    task = study.task
    return prepare(
        spec or study.data, labels=task.columns, needs_mask=task.kind == "segmentation", classes=task.classes,
        multilabel=task.kind == "multilabel", cache_dir=cache_dir, keep=keep,
    )


def private_plan(study: Study, patient_ids: np.ndarray) -> DpPlan:
    """The plan of a hospital that trains on these scans; `patient_ids` (R,) names the patient of each.

    The same study and number of units give the same plan anywhere. Errors: StudyError for a study without privacy,
    PrivacyError for what cannot be accounted for.
    """
    if study.privacy is None:
        raise StudyError("privacy=None: a study without privacy has no private plan.")
    n_units = len(group_units(patient_ids, study.privacy.unit))
    return _plan(study, study.privacy, n_units, most_records(patient_ids) if study.privacy.unit == "record" else None)


def public_plan(study: Study, n_units: int) -> DpPlan:
    """The plan of a hospital that declares so many units, from public numbers alone. Errors: as `private_plan`."""
    if study.privacy is None:
        raise StudyError("privacy=None: a study without privacy has no noise to weigh by; use public_patients.")
    return _plan(study, study.privacy, n_units)


def _plan(study: Study, spec: PrivacySpec, n_units: int, scans_per_patient: int | None = None) -> DpPlan:
    """Where groups are drawn unlike, noise and charge are those of the group that is drawn most often."""
    expected, balance = min(study.training.batch_size, n_units), study.training.balance
    largest = expected if balance is None else min(float(n_units), expected * max(balance.odds().values()))
    plan = plan_for(
        spec, n_units, largest, study.training.steps(n_units / expected), study.federation.rounds, scans_per_patient
    )
    if balance is None:
        return plan
    return replace(plan, relative_rates=relative_rates(balance), mean_relative=mean_relative(balance))


def update_noise(study: Study, plan: DpPlan) -> float:
    """Standard deviation of the noise, per coordinate, in a round's update by plain SGD at the study's learning rate."""
    step = plan.noise_share * plan.noise_multiplier * plan.clip_norm / plan.denominator
    return study.training.learning_rate * step * math.sqrt(plan.steps_per_round)


def inverse_noise(study: Study, n_units: int) -> float:
    """One over the variance of the noise in a round's update of a hospital with so many units, up to a factor that is the same
    for all hospitals."""
    return update_noise(study, public_plan(study, n_units)) ** -2


def charges_of(
    study: Study, plan: DpPlan | None, rounds: int, evaluation_noise: float | None, calibration_noise: float | None, *,
    after: int = 0, final_parts: Sequence[Charge] = (),
) -> list[Charge]:
    """What the rounds from `after` + 1 to `rounds` of the study cost a hospital. `final_parts`: what the final model's
    evaluation costs more (`final_parts.py`).

    plan None: it does not train privately. evaluation_noise: the noise multiplier of its evaluations; None where they
    are released without noise (and so uncharged), or not at all. calibration_noise: the same of the calibration, which
    follows the last round where the study asks for one.
    """
    training = [] if plan is None else [plan.charge(plan.steps_per_round * (rounds - after))]
    asked = study.evaluations_by(rounds) - study.evaluations_by(after)
    evaluations = [] if evaluation_noise is None else [release_charge(evaluation_noise)] * asked
    if not after < study.federation.rounds <= rounds:
        return [*training, *evaluations]
    calibration = []
    if calibration_noise is not None and study.evaluation.calibration != "none":
        calibration.append(release_charge(calibration_noise))
    return [*training, *evaluations, *final_parts, *calibration]
