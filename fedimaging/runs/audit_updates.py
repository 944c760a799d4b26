"""What the server sees: a re-run of the federation with every update of one hospital taken down and compared with patients.

The re-run also shows whether the run's weights follow from its study at all: noise that was halved, a clip that was wider, or
any other change of the mechanism since leaves other weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedimaging.audits.gradients import clipped_rows, unit_gradients, unit_runs
from fedimaging.audits.membership import Estimate, auc, unit_means
from fedimaging.privacy.units import group_units
from fedimaging.runs import machine
from fedimaging.runs.audit_entry import Entry, entry, membership_entry
from fedimaging.runs.audit_federation import kept, train_federation
from fedimaging.runs.audit_membership import claim_of, units_of
from fedimaging.runs.audit_shadows import Population, population
from fedimaging.runs.audit_target import Target

ENOUGH_NON_MEMBERS = 1000  # for a false positive rate of 0.1 %
_ROUNDING = 1e-4  # of the distance trained: the most that another order of additions does; noise makes up most of it


@dataclass(frozen=True)
class Rerun:
    """weights (P,): where the re-run ended. Of each judged row (K,): its place in the population, its unit's score against the
    updates of the hospital, and against those of another hospital, where it is no member (None with one hospital)."""

    weights: np.ndarray
    places: np.ndarray
    scores: np.ndarray
    control: np.ndarray | None


def rerun(target: Target, say: Callable[[str], None], *, watch: bool) -> Rerun:
    """Train the study again from its start; with `watch`, score patients against each round's update on the way."""
    people = population(target)
    sites = target.largest_sites()[:2]
    places = _judged(target, people, sites[0]) if watch else np.zeros(0, np.int64)

    def work() -> dict[str, np.ndarray]:
        watcher = _Watcher(target, people.rows[places], sites)
        federation = replace(target.federation, folder=target.folder / "rerun")
        weights = train_federation(target, federation, workers=target.workers, on_update=watcher.update if watch else None)
        return {"weights": weights, **watcher.scores()}

    found = kept(target.folder / "rerun", target.key | {"watch": watch}, work)
    say("the study is trained again, as the server sees it.")
    return Rerun(found["weights"], places, found["scores"], found["control"] if len(sites) > 1 else None)


def audit_updates(target: Target, seen: Rerun, confidence: float) -> list[Entry]:
    """The line `membership.updates`: members are the hospital's training patients, non-members its test patients, and those of
    other hospitals where it has fewer than a thousand."""
    people, site = population(target), target.largest_sites()[0]
    lines = []
    for unit in units_of(target):
        of_row = people.patient[seen.places] if unit == "patient" else np.arange(len(seen.places))
        names, of_row = np.unique(of_row, return_inverse=True)
        member = unit_means(people.member[seen.places].astype(float), of_row, len(names)) > 0
        score = unit_means(seen.scores, of_row, len(names))
        control: Estimate | None = None
        if seen.control is not None:
            other = unit_means(seen.control, of_row, len(names))
            control = auc(other[member], other[~member], 0.99)
        claim = claim_of(target, {site: target.charges[site]} if target.charges else {}, unit)
        lines.append(membership_entry(
            "membership.updates", f"updates of {site}, all rounds", unit, score[member], score[~member], claim, confidence,
            control=control,
        ))
    return lines


def audit_reproduction(target: Target, seen: Rerun) -> Entry:
    """The line `reproduction`: does the study, run again, give the run's weights bit for bit?"""
    away = float(np.linalg.norm(seen.weights.astype(np.float64) - target.weights))
    trained = float(np.linalg.norm(seen.weights.astype(np.float64) - target.bench.start))
    share = away / trained if trained > 0 else float(away > 0)
    metrics = {"equal_numbers": {"value": float(np.mean(seen.weights == target.weights)), "low": None, "high": None},
               "relative_distance": {"value": share, "low": None, "high": None}}
    sizes = {"weights": len(target.weights)}
    line = entry("reproduction", "final model", target.unit, sizes, metrics, None, ("inconclusive", ""))
    line["verdict"], line["why"] = _reproduced(target, bool(np.array_equal(seen.weights, target.weights)), share)
    return line


def _reproduced(target: Target, equal: bool, share: float) -> tuple[str, str]:
    if equal:
        return "consistent", "the study, trained again, gives the run's weights bit for bit."
    far = f"the study, trained again, ends {share:.2g} of the trained distance away from the run's weights"
    here = {"versions": machine.versions(), "machine": machine.machine(target.federation.device)}
    differs = [key for key, value in here.items() if target.report.get(key) != value]
    if share <= _ROUNDING:
        return "consistent", f"{far}: not bit for bit, but no more than rounding does; another noise or clip moves far more."
    if any(row.get("refused") for row in target.report.get("rounds") or ()):
        return "inconclusive", f"{far}; but hospitals refused in rounds of the run (after a kill?), so it can not be repeated."
    if differs:
        return "inconclusive", f"{far}, with other {' and '.join(differs)} than the run's; audit where it was run."
    if target.study.privacy is None:
        return "inconclusive", f"{far}; without privacy training can magnify rounding, so this alone proves nothing."
    return "violation", f"{far}, with equal versions on an equal machine: the run's mechanism was not that of its study."


def _judged(target: Target, people: Population, site: str) -> np.ndarray:
    """Places in the population: the hospital's own patients, then others' test patients if its own are too few."""
    mine = people.site == target.federation.names.index(site)
    if len(np.unique(people.patient[mine & ~people.member])) < ENOUGH_NON_MEMBERS:
        return np.flatnonzero(mine | ~people.member)
    return np.flatnonzero(mine)


class _Watcher:
    """Adds up, over the rounds, how far each unit's clipped gradient at the weights sent lies along minus the update."""

    def __init__(self, target: Target, rows: np.ndarray, sites: list[str]) -> None:
        self._target, self._sites, self._bench = target, sites, target.bench
        self._records = target.records(rows)
        self._units = group_units(self._records.patient_ids, target.unit)
        self._counts = np.diff(self._units.starts)
        self._dots = np.zeros((2, len(self._units)))
        self._lengths = np.zeros((2, len(self._units)))
        plan = target.federation.plans.get(sites[0])
        self._clip = plan.clip_norm if plan else float("inf")

    def update(self, site: str, round: int, weights: np.ndarray, delta: np.ndarray) -> None:
        """See `OnUpdate`."""
        if site not in self._sites or not len(self._records):
            return
        self._bench.load(self._target.full(weights))
        network, which = self._bench.network(self._records), self._sites.index(site)
        sent = torch.from_numpy(-np.asarray(delta)).to(self._bench.device)
        shared = torch.from_numpy(self._bench.shared).to(self._bench.device)
        for units in unit_runs(self._counts, self._bench.initial.size):
            rows = self._units.order[self._units.starts[units.start] : self._units.starts[units.stop]]
            x, y = self._records.inputs(rows), self._records.targets(rows, self._bench.task.kind)
            gradients = clipped_rows(
                unit_gradients(network, self._bench.task.losses, x.to(sent.device), y.to(sent.device), self._counts[units]),
                self._clip,
            )[:, shared]
            self._dots[which, units] += (gradients @ sent).cpu().numpy()
            self._lengths[which, units] += gradients.square().sum(1).cpu().numpy()

    def scores(self) -> dict[str, np.ndarray]:
        """(K,) of each row: its unit's sum over the length of all its gradients together; the hospital's, and the control."""
        scores = self._dots / np.sqrt(np.maximum(self._lengths, 1e-30))
        of_row = np.empty(len(self._records), np.int64)
        of_row[self._units.order] = np.repeat(np.arange(len(self._units)), self._counts)
        return {"scores": scores[0][of_row], "control": scores[1][of_row]}
