"""Shadow federations: the same study at the same hospitals, each trained on a random half of all patients.

A shadow is a true federation: hospitals with plans, ledgers and noise of their own, and the server's rounds. Shadows come
in pairs of complementary halves, so every patient is in one of each pair. A hospital's noise multiplier is that of the run;
sample rate, steps and charges follow from the half's size.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.units import group_units
from fedimaging.runs.audit_federation import kept, train_federation
from fedimaging.runs.audit_target import Target, open_target
from fedimaging.site.plan import private_plan
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.training.evaluate import predict

_ROOM = 2.0  # a shadow's budget over its own plan: it must never stand in the way


@dataclass(frozen=True)
class Population:
    """Everybody whom membership attacks judge: training and test patients of the hospitals that train.

    rows (R,): of the data set; member (R,) bool; site (R,): index of the hospital; patient (R,): 0 … patients - 1, where
    a patient of two hospitals is two.
    """

    rows: np.ndarray
    member: np.ndarray
    site: np.ndarray
    patient: np.ndarray

    @property
    def patients(self) -> int:
        """How many."""
        return int(self.patient.max()) + 1


def population(target: Target) -> Population:
    """The population of a run; held-out hospitals take no part."""
    federation = target.federation
    training = [federation.names.index(name) for name in federation.train_names]
    member = federation.train_site >= 0
    rows = np.flatnonzero(member | np.isin(federation.test_site, training))
    site = np.where(member, federation.train_site, federation.test_site)[rows]
    ids = np.char.add(np.char.add(site.astype(str), "/"), target.dataset.patient_ids[rows].astype(str))
    return Population(rows, member[rows], site, np.unique(ids, return_inverse=True)[1])


def half(target: Target, people: Population, number: int) -> np.ndarray:
    """(patients,) bool: who is in shadow `number` (0-based); within each hospital a random half, at least one patient."""
    rng = np.random.default_rng([target.seed("shadows"), number // 2])
    chosen = np.zeros(people.patients, bool)
    for site in np.unique(people.site):
        mine = rng.permutation(np.unique(people.patient[people.site == site]))
        chosen[mine[: (len(mine) + 1) // 2] if number % 2 == 0 else mine[(len(mine) + 1) // 2 :]] = True
        if len(mine) == 1:
            chosen[mine] = True
    return chosen


def row_losses(target: Target, people: Population, weights: np.ndarray) -> np.ndarray:
    """(R,) the loss of each row under these weights (P,)."""
    target.bench.load(target.full(weights))
    return np.concatenate([loss.cpu().numpy() for *_, loss in predict(target.bench, target.records(people.rows))])


def shadow(target: Target, people: Population, number: int) -> np.ndarray:
    """(R,) the losses under one shadow's final model, trained now or in an audit before."""

    def work() -> dict[str, np.ndarray]:
        weights = train_federation(target, _federation(target, people, number), workers=1)
        return {"losses": row_losses(target, people, weights)}

    return kept(_folder(target, number), target.key | {"shadow": number}, work)["losses"]


def shadows(target: Target, people: Population, count: int, jobs: int, say: Callable[[str], None]) -> np.ndarray:
    """(S, R) the losses under each shadow's final model."""
    if jobs == 1:
        losses = []
        for number in range(count):
            losses.append(shadow(target, people, number))
            say(f"shadow federation {number + 1} of {count} is trained.")
        return np.stack(losses)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        found = []
        for number, losses_of in enumerate(pool.map(_in_process, [target.run] * count, range(count))):
            found.append(losses_of)
            say(f"shadow federation {number + 1} of {count} is trained.")
        return np.stack(found)


def shadow_charges(target: Target, people: Population, number: int) -> dict[str, tuple[Charge, ...]]:
    """What the study charges each hospital of this shadow; empty without privacy."""
    plans = _plans(target, people, number)
    return {name: (plan.charge(plan.steps_per_round * plan.rounds),) for name, plan in plans.items()}


def _in_process(run: Path, number: int) -> np.ndarray:
    import torch

    torch.set_num_threads(1)
    target = open_target(run)
    return shadow(target, population(target), number)


def _folder(target: Target, number: int) -> Path:
    return target.folder / "shadows" / f"{number + 1:02d}"


def _federation(target: Target, people: Population, number: int) -> SimulatedFederation:
    plans = _plans(target, people, number)
    budgets = {
        name: Budget(_ROOM * max(0.1, epsilon([plan.charge(plan.steps_per_round * plan.rounds)], plan.delta)), plan.delta)
        for name, plan in plans.items()
    }
    train = np.full_like(target.federation.train_site, -1)
    chosen = half(target, people, number)[people.patient]
    train[people.rows[chosen]] = people.site[chosen]
    return replace(
        target.federation, folder=_folder(target, number), train_site=train, test_site=np.full_like(train, -1), plans=plans,
        budgets=budgets, arm=f"shadow {number + 1}",
    )


def _plans(target: Target, people: Population, number: int) -> dict[str, DpPlan]:
    """Each hospital's plan for its half, with the run's own noise multiplier, delta and engine."""
    privacy = target.study.privacy
    if privacy is None:
        return {}
    chosen = half(target, people, number)[people.patient]
    plans = {}
    for name, full in target.federation.plans.items():
        ids = target.dataset.patient_ids[people.rows[chosen & (people.site == target.federation.names.index(name))]]
        delta = min(full.delta, len(group_units(ids, privacy.unit)) ** -1.1)  # a half of many test patients may be the larger
        same_noise = {"target_epsilon": None, "noise_multiplier": full.noise_multiplier, "delta": delta}
        study = target.study.model_copy(update={"privacy": privacy.model_copy(update=same_noise)})
        plans[name] = replace(private_plan(study, ids), engine=full.engine)
    return plans
