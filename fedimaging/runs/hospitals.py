"""From a study and its prepared data to simulated hospitals: who holds what, and the private plan of each."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.data.partition import assign, one_class_sites
from fedimaging.data.prepare import prepare
from fedimaging.errors import DataError, PrivacyError, StudyError, bad_value
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Budget
from fedimaging.privacy.dpsgd import DpPlan, plan_for
from fedimaging.privacy.units import group_units, most_records
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study

_LEAST_BUDGET = 0.01  # a budget is above 0, also where the noise is so great that the plan costs nothing at this delta
_HEADROOM = 1.5  # a simulated hospital's budget over the study's plan: rounds repeated after a crash are charged again


def load_data(study: Study) -> Dataset:
    """Decode (once) and open the study's data. Error: DataError."""
    task = study.task
    return prepare(
        study.data, labels=task.columns, needs_mask=task.kind == "segmentation", classes=task.classes,
        multilabel=task.kind == "multilabel",
    )


def make_federation(study: Study, dataset: Dataset, folder: Path, device: str) -> SimulatedFederation:
    """Hospitals with their rows, plans and budgets. Errors: StudyError, DataError, PrivacyError."""
    site = assign(dataset, study.hospitals, dataset.labels)
    names = tuple(sorted(set(site.tolist())))
    held_out = set(study.hospitals.held_out)
    code = np.searchsorted(np.array(names), site).astype(np.int32)
    is_held_out = np.isin(site, sorted(held_out))
    train = np.where((dataset.split == "train") & ~is_held_out, code, -1).astype(np.int32)
    test = np.where((dataset.split == "test") | is_held_out, code, -1).astype(np.int32)
    federation = SimulatedFederation(
        folder, study, _store(dataset), names, train, test, {}, {}, device
    )
    _check_replies(study, len(federation.train_names))
    return with_plans(federation, dataset)


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
        n_units = len(group_units(dataset.patient_ids[rows], study.privacy.unit))
        expected = min(study.training.batch_size, n_units)
        plans[name] = plan_for(
            study.privacy, n_units, expected, study.training.steps(n_units / expected), study.federation.rounds,
            most_records(dataset.patient_ids[rows]) if study.privacy.unit == "record" else None,
        )
        budgets[name] = _budget(study, name, plans[name])
    return replace(federation, plans=plans, budgets=budgets)


def pooled(federation: SimulatedFederation, dataset: Dataset) -> SimulatedFederation:
    """The baseline in which all training data lie in one place, evaluated on the same test patients."""
    names = ("pooled", *federation.names)
    arm = replace(
        federation, folder=federation.folder / "baselines" / "pooled", names=names, arm="pooled",
        train_site=np.where(federation.train_site >= 0, 0, -1).astype(np.int32),
        test_site=np.where(federation.test_site >= 0, federation.test_site + 1, -1).astype(np.int32),
    )
    return with_plans(arm, dataset)


def local_only(federation: SimulatedFederation) -> SimulatedFederation:
    """The baseline in which every hospital trains alone, with ledgers of its own."""
    return replace(federation, folder=federation.folder / "baselines" / "local_only", arm="local_only")


def public_weights(federation: SimulatedFederation, dataset: Dataset) -> dict[str, float]:
    """The fixed weight of each training hospital in the mean."""
    if federation.study.federation.weights == "uniform":
        return dict.fromkeys(federation.train_names, 1.0)
    weights = {}
    for name in federation.train_names:
        rows = np.flatnonzero(federation.train_site == federation.names.index(name))
        weights[name] = float(len(np.unique(dataset.patient_ids[rows])))
    return weights


def planned_epsilon(plan: DpPlan, rounds: int) -> float:
    """What so many rounds of the plan cost, by PLD."""
    return epsilon([plan.charge(plan.steps_per_round * rounds)], plan.delta)


def _budget(study: Study, name: str, plan: DpPlan) -> Budget:
    planned = planned_epsilon(plan, plan.rounds)
    if math.isinf(planned):
        raise PrivacyError(
            f"privacy.noise_multiplier={plan.noise_multiplier} at hospital {name!r} gives no finite epsilon, so it protects "
            "nobody; raise it (about 1 is usual), or give target_epsilon instead."
        )
    allowed = study.policy.budget_epsilon
    if allowed is not None and planned > allowed:
        raise StudyError(
            f"policy.budget_epsilon={allowed} is below the {planned:.3g} that the study would spend at hospital {name!r}; "
            "raise the budget, lower privacy.target_epsilon, or train fewer rounds."
        )
    if plan.noise_multiplier < study.policy.minimum_noise_multiplier:
        raise StudyError(
            f"privacy.noise_multiplier={plan.noise_multiplier:.3g} is below policy.minimum_noise_multiplier="
            f"{study.policy.minimum_noise_multiplier} (hospital {name!r}); raise the noise or ask the hospital."
        )
    target = study.privacy.target_epsilon if study.privacy and study.privacy.target_epsilon else planned
    return Budget(allowed if allowed is not None else max(_HEADROOM * target, _LEAST_BUDGET), plan.delta)


def _store(dataset: Dataset) -> Path:
    if dataset.store_dir is None:
        raise DataError("the data set has no store folder; prepare it first.")
    return dataset.store_dir
