"""From a study and its prepared data to simulated hospitals: who holds what, and the private plan of each."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.data.partition import assign, one_class_sites
from fedimaging.errors import DataError, PrivacyError, StudyError, bad_value
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.released_metrics import release_charge
from fedimaging.site.final_parts import final_charges
from fedimaging.site.plan import charges_of, inverse_noise, prepare_data, private_plan, update_noise
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.balance import check_column

_LEAST_BUDGET = 0.01  # a budget is above 0, also where the noise is so great that the plan costs nothing at this delta
# A simulated hospital's own budget is above the study's plan, for rounds repeated after a crash are charged again.
_HEADROOM = 1.5  # times the plan's epsilon, and at least
_REPEATS = 2  # rounds (and evaluations) more than planned: one round alone may be most of a short study


def load_data(study: Study) -> Dataset:
    """Decode (once) and open the study's data. Error: DataError."""
    return prepare_data(study)


def make_federation(study: Study, dataset: Dataset, folder: Path, device: str) -> SimulatedFederation:
    """Hospitals with their rows, plans and budgets. Errors: StudyError, DataError, PrivacyError."""
    if study.training.balance is not None:
        check_column(study.training.balance, dataset.columns)
    site = assign(dataset, study.hospitals, dataset.labels)
    takes_part = site != ""
    names = tuple(sorted(set(site[takes_part].tolist())))
    held_out = set(study.hospitals.held_out)
    code = np.where(takes_part, np.searchsorted(np.array(names), site), -1)
    is_held_out = np.isin(site, sorted(held_out))
    train = np.where((dataset.split == "train") & ~is_held_out, code, -1).astype(np.int32)
    test = np.where((dataset.split == "test") | is_held_out, code, -1).astype(np.int32)
    validation = np.where((dataset.split == "validation") & ~is_held_out, code, -1).astype(np.int32)
    federation = SimulatedFederation(
        folder, study, _store(dataset), names, train, test, validation, {}, {}, device
    )
    _check_replies(study, len(federation.train_names))
    return with_evaluation_budgets(with_plans(federation, dataset), dataset)


def _check_replies(study: Study, n_training: int) -> None:
    asked = min(study.federation.sites_per_round or n_training, n_training)
    if study.federation.minimum_replies > asked:
        rule = f"is above the {asked} hospitals that train in a round"
        raise StudyError(bad_value("federation.minimum_replies", study.federation.minimum_replies, rule, "lower it"))


def warnings_of(federation: SimulatedFederation, dataset: Dataset) -> list[str]:
    """What lets a study run but leaves its numbers wanting: hospitals that see one class only, nobody to test on."""
    found = []
    if federation.study.task.kind in ("binary", "multiclass") and dataset.labels is not None:
        names = np.array(federation.names)
        for of_row, what, so in (
            (federation.train_site, "train", "they learn that class alone"),
            (federation.test_site, "test", "metrics that compare classes, such as AUROC, are not defined there"),
        ):
            held = of_row >= 0
            one = one_class_sites(names[of_row[held]], dataset.labels[held])
            if one:
                told = ", ".join(f"{name} (class {label})" for name, label in sorted(one.items()))
                found.append(f"hospitals that {what} on one class only: {told}; {so}.")
    if not federation.test_names:
        found.append("no hospital has a test patient, so nothing is measured; raise data.split.test.")
    return found


def with_plans(federation: SimulatedFederation, dataset: Dataset) -> SimulatedFederation:
    """Add each training hospital's private plan and budget; unchanged where the study is not private.

    Error: PrivacyError for what cannot be accounted for, StudyError where the plan alone would pass the budget.
    """
    study = federation.study
    if study.privacy is None:
        return federation
    plans: dict[str, DpPlan] = {}
    budgets: dict[str, Budget] = {}
    for name in federation.train_names:
        rows = np.flatnonzero(federation.train_site == federation.names.index(name))
        plans[name] = private_plan(study, dataset.patient_ids[rows])
        budgets[name] = _budget(study, name, plans[name])
    federation = replace(federation, plans=plans, budgets=budgets)
    return with_noise_shares(federation, dataset) if study.privacy.secure_sum == "ideal" else federation


def with_noise_shares(federation: SimulatedFederation, dataset: Dataset) -> SimulatedFederation:
    """Each plan with its share of the noise under an ideal secure sum: all shares together are, in the weighted sum, the
    greatest noise that any hospital's patients need. Error: StudyError where a patient weighs more at one hospital than at
    another, or where a round may end without some hospital's share.
    """
    study, plans = federation.study, federation.plans
    if federation.arm == "federated" and study.federation.minimum_replies != len(plans):
        given, rule = study.federation.minimum_replies, f"lets a round end without the noise of one of the {len(plans)} hospitals"
        raise StudyError(bad_value("federation.minimum_replies", given, rule, f"set it to {len(plans)}"))
    weights = public_weights(federation, dataset)
    reach = {name: weights[name] / plan.denominator for name, plan in plans.items()}  # of one patient, in the mean
    if max(reach.values()) > min(reach.values()) * (1 + 1e-9):
        raise StudyError(
            "privacy.secure_sum=ideal needs every patient to weigh the same in the sum: give weights: public_patients with a "
            "batch_size of at least every hospital's patients, or weights: uniform with one that every hospital can fill."
        )
    needed = max(plan.noise_multiplier for plan in plans.values())
    return replace(federation, plans={
        name: replace(plan, noise_share=needed / plan.noise_multiplier / math.sqrt(len(plans))) for name, plan in plans.items()
    })


def with_evaluation_budgets(federation: SimulatedFederation, dataset: Dataset) -> SimulatedFederation:
    """Add a budget for each hospital that only evaluates, or whose training is not private, where evaluations or the
    calibration are charged."""
    study = federation.study
    noised, calibration = study.policy.release_evaluation == "noised", _calibration(study)
    asked = _evaluations(study, study.evaluations_by(study.federation.rounds) if noised else 0)
    evaluations = [*asked, *final_charges(study, study.policy)]
    budgets = dict(federation.budgets)
    charged = {*(federation.test_names if evaluations else ()), *(federation.train_names if calibration else ())}
    for name in charged - budgets.keys():
        place = federation.names.index(name)
        rows = np.flatnonzero((federation.test_site == place) | (federation.validation_site == place))
        delta = min(1e-5, max(1, len(np.unique(dataset.patient_ids[rows]))) ** -1.1)
        charges = [*evaluations, *(calibration if name in federation.train_names else [])]
        allowed = study.policy.budget_epsilon
        budgets[name] = Budget(allowed if allowed is not None else _room(charges, study, None, delta), delta)
    return replace(federation, budgets=budgets)


def pooled(federation: SimulatedFederation, dataset: Dataset) -> SimulatedFederation:
    """The baseline in which all training data lie in one place, evaluated on the same test patients."""
    names = ("pooled", *federation.names)
    arm = replace(
        federation, folder=federation.folder / "baselines" / "pooled", names=names, arm="pooled",
        train_site=np.where(federation.train_site >= 0, 0, -1).astype(np.int32),
        test_site=np.where(federation.test_site >= 0, federation.test_site + 1, -1).astype(np.int32),
        validation_site=np.where(federation.validation_site >= 0, federation.validation_site + 1, -1).astype(np.int32),
    )
    return with_evaluation_budgets(with_plans(arm, dataset), dataset)


def without(federation: SimulatedFederation, dataset: Dataset, name: str) -> SimulatedFederation:
    """The federation of the other training hospitals, with ledgers of its own; all patients of hospital `name` only test,
    and nobody else does, unless the others' evaluations steer the training (`federation.fairness`)."""
    place = federation.names.index(name)
    rows = (federation.train_site, federation.test_site, federation.validation_site)
    mine = np.any([of_row == place for of_row in rows], axis=0)
    steers = federation.study.federation.fairness.kind != "none"
    others = [of_row if steers else np.full_like(of_row, -1) for of_row in (federation.test_site, federation.validation_site)]
    test, validation = (np.where(mine, now, of_row).astype(np.int32) for now, of_row in zip((place, -1), others, strict=True))
    arm = replace(
        federation, folder=federation.folder / "leave_one_out" / federation.site_folder(name).name, arm=f"without/{name}",
        train_site=np.where(mine, -1, federation.train_site).astype(np.int32), test_site=test, validation_site=validation,
        plans={}, budgets={},
    )
    return with_evaluation_budgets(with_plans(arm, dataset), dataset)


def local_only(federation: SimulatedFederation) -> SimulatedFederation:
    """The baseline in which every hospital trains alone, with ledgers of its own.

    Each hospital's model is tried at every other: where evaluations are charged and the study sets no budget, budgets are
    made wide enough for that.
    """
    alone = {name: replace(plan, noise_share=1.0) for name, plan in federation.plans.items()}
    arm = replace(federation, folder=federation.folder / "baselines" / "local_only", arm="local_only", plans=alone)
    study = federation.study
    if study.policy.release_evaluation != "noised" or study.policy.budget_epsilon is not None:
        return arm
    tried = _evaluations(study, len(federation.train_names))
    budgets = {}
    for name, budget in federation.budgets.items():
        plan = federation.plans.get(name)
        charges = [*(planned_charges(study, plan, plan.rounds) if plan else []), *tried]
        budgets[name] = replace(budget, epsilon=max(budget.epsilon, _room(charges, study, plan, budget.delta)))
    return replace(arm, budgets=budgets)


def all_shared(federation: SimulatedFederation) -> SimulatedFederation:
    """The same hospitals where no layer stays at home: what `federation.local_parameters` is set beside."""
    spec = federation.study.federation.model_copy(update={"local_parameters": "none"})
    study = federation.study.model_copy(update={"federation": spec})
    return replace(federation, folder=federation.folder / "baselines" / "all_shared", arm="all_shared", study=study)


def public_weights(federation: SimulatedFederation, dataset: Dataset) -> dict[str, float]:
    """The fixed weight of each training hospital in the mean."""
    if federation.study.federation.weights == "uniform":
        return dict.fromkeys(federation.train_names, 1.0)
    study, weights = federation.study, {}
    for name in federation.train_names:
        ids = dataset.patient_ids[federation.train_site == federation.names.index(name)]
        patients = float(len(np.unique(ids)))
        if study.federation.weights == "inverse_noise" and study.privacy is not None:
            weights[name] = inverse_noise(study, len(ids) if study.privacy.unit == "record" else int(patients))
        else:
            weights[name] = patients
    return weights


def public_noise(federation: SimulatedFederation) -> dict[str, float]:
    """Of each training hospital, the deviation of the noise in its update per coordinate; for `federation.noise_limit`."""
    return {name: update_noise(federation.study, plan) for name, plan in federation.plans.items()}


def planned_charges(study: Study, plan: DpPlan, rounds: int) -> list[Charge]:
    """What the first so many rounds of the study cost a simulated hospital that trains and evaluates."""
    policy = study.policy
    noise = policy.evaluation_noise_multiplier if policy.release_evaluation == "noised" else None
    return charges_of(study, plan, rounds, noise, None, final_parts=final_charges(study, policy))


def whole_cost(study: Study, plan: DpPlan) -> list[Charge]:
    """What all rounds cost it, and the calibration after the last one where it is asked for with noise."""
    return [*planned_charges(study, plan, plan.rounds), *_calibration(study)]


def _calibration(study: Study) -> list[Charge]:
    noised = study.evaluation.calibration != "none" and study.calibration_release == "noised"
    return [release_charge(study.policy.calibration_noise_multiplier)] if noised else []


def _budget(study: Study, name: str, plan: DpPlan) -> Budget:
    planned = epsilon(planned_charges(study, plan, plan.rounds), plan.delta)
    if math.isinf(planned):
        raise PrivacyError(
            f"privacy.noise_multiplier={plan.noise_multiplier} at hospital {name!r} gives no finite epsilon, so it protects "
            "nobody; raise it (about 1 is usual), or give target_epsilon instead."
        )
    allowed = study.policy.budget_epsilon
    if allowed is not None and planned > allowed:
        raise StudyError(
            f"policy.budget_epsilon={allowed} is below the {planned:.3g} that the study would spend at hospital {name!r}; "
            "raise the budget, lower privacy.target_epsilon, or train (and, where evaluations are noised, evaluate) less."
        )
    if plan.noise_multiplier < study.policy.minimum_noise_multiplier:
        raise StudyError(
            f"privacy.noise_multiplier={plan.noise_multiplier:.3g} is below policy.minimum_noise_multiplier="
            f"{study.policy.minimum_noise_multiplier} (hospital {name!r}); raise the noise or ask the hospital."
        )
    if allowed is not None:
        return Budget(allowed, plan.delta)
    target = study.privacy.target_epsilon if study.privacy and study.privacy.target_epsilon else planned
    room = _room(whole_cost(study, plan), study, plan, plan.delta)
    return Budget(max(_HEADROOM * target, room), plan.delta)


def _room(planned: list[Charge], study: Study, plan: DpPlan | None, delta: float) -> float:
    """A finite budget that holds the planned charges and those of rounds repeated after a crash; above 0."""
    noised = study.policy.release_evaluation == "noised"
    again = [*([plan.charge(_REPEATS * plan.steps_per_round)] if plan else []), *_evaluations(study, _REPEATS if noised else 0)]
    repeated = epsilon([*planned, *again], delta) * (1 + 1e-9)  # the order in which charges are added up rounds differently
    room = max(_HEADROOM * epsilon(planned, delta), _LEAST_BUDGET)
    return max(room, repeated) if math.isfinite(repeated) else room


def _evaluations(study: Study, number: int) -> list[Charge]:
    return [release_charge(study.policy.evaluation_noise_multiplier)] * number


def _store(dataset: Dataset) -> Path:
    if dataset.store_dir is None:
        raise DataError("the data set has no store folder; prepare it first.")
    return dataset.store_dir
