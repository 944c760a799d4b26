"""Membership attacks on the final model: loss threshold and offline LiRA, with shadow federations as the reference.

The run is attacked as it is: members are its training patients, non-members its test patients. Where a data set's test
patients differ from its training patients, that difference looks like membership; so the same attacks are also made on one
shadow, whose members were chosen by chance from both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedimaging.audits.lira import confidences, offline_scores
from fedimaging.audits.membership import auc, unit_means
from fedimaging.privacy.accounting import Steps, epsilon_of_steps, patient_steps_of, steps_of
from fedimaging.privacy.budget import Charge
from fedimaging.runs.audit_entry import Claim, Entry, figure, membership_entry
from fedimaging.runs.audit_options import AuditOptions
from fedimaging.runs.audit_shadows import Population, half, population, row_losses, shadow_charges, shadows
from fedimaging.runs.audit_target import Target, ceiling

_LEAST_GROUP = 20  # members and non-members of a subgroup, each
_CONTROL_CONFIDENCE = 0.99


def audit_membership(target: Target, options: AuditOptions, confidence: float, say: Callable[[str], None]) -> list[Entry]:
    """The lines `membership.loss` and `membership.lira`, for the final model and for the first shadow."""
    people = population(target)
    own = row_losses(target, people, target.weights)
    others = shadows(target, people, options.shadows, options.jobs, say)
    halves = np.stack([half(target, people, number) for number in range(options.shadows)])
    found = []
    for unit in units_of(target):
        seen = _Seen.of(people, unit)
        found += _attacks(target, seen, own, seen.member, others, halves, "final model", target.charges, confidence)
        if options.shadows > 2:
            # The second shadow is the complement of the first: as a reference it would tell who is in the first.
            found += _attacks(
                target, seen, others[0], halves[0][seen.patient], others[2:], halves[2:], "shadow federation 1",
                shadow_charges(target, people, 0), confidence,
            )  # fmt: skip
    return found


def units_of(target: Target) -> tuple[str, ...]:
    """Attacks are made on patients, and first on records where those are what the study protects."""
    return ("record", "patient") if target.unit == "record" else ("patient",)


def claim_of(target: Target, charges: Mapping[str, tuple[Charge, ...]], unit: str) -> Claim | None:
    """What these hospitals' charges promise for one unit: the weakest of their guarantees. None where nothing is promised,
    or nothing that can be read for this unit."""
    if not charges:
        return None
    known = {name: read_for(each, unit) for name, each in charges.items()}
    guarantees = tuple(steps for steps in known.values() if steps is not None)
    if len(guarantees) < len(known):
        return None
    deltas = [target.federation.plans[name].delta for name in known]
    largest = max(epsilon_of_steps(steps, delta) for steps, delta in zip(guarantees, deltas, strict=True))
    return Claim(lambda fpr: ceiling(guarantees, fpr), largest)


def read_for(charges: tuple[Charge, ...], unit: str) -> Steps | None:
    """The charges as the accountant reads them for this unit; None where the bound on a patient's records is not known."""
    if unit == "record":
        return steps_of(charges)
    if any(charge.unit == "record" and charge.scans_per_patient is None for charge in charges):
        return None
    return patient_steps_of(charges)


@dataclass(frozen=True)
class _Seen:
    """The population unit by unit: `of_row` (R,) the unit of each row, and of each unit (U,) what its rows share."""

    unit: str
    of_row: np.ndarray
    chosen: np.ndarray
    member: np.ndarray
    site: np.ndarray
    patient: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, people: Population, unit: str) -> "_Seen":
        of_row = people.patient if unit == "patient" else np.arange(len(people.rows))
        first = np.unique(of_row, return_index=True)[1]
        facts = (people.member[first], people.site[first], people.patient[first], people.rows[first])
        return cls(unit, of_row, np.arange(len(first)), *facts)

    def only(self, wanted: np.ndarray) -> "_Seen":
        """Some of the units (U,) bool."""
        facts = (self.chosen, self.member, self.site, self.patient, self.rows)
        return _Seen(self.unit, self.of_row, *(fact[wanted] for fact in facts))

    def means(self, values: np.ndarray) -> np.ndarray:
        """(R,) -> (U,) the mean over each unit's rows."""
        return unit_means(values, self.of_row, int(self.of_row.max()) + 1)[self.chosen]


def _attacks(
    target: Target, seen: _Seen, losses: np.ndarray, member: np.ndarray, references: np.ndarray, halves: np.ndarray,
    name: str, charges: Mapping[str, tuple[Charge, ...]], confidence: float,
) -> list[Entry]:
    without = ~halves[:, seen.patient]
    judged = np.any(without, axis=0)  # the only patient of a hospital is in every half
    seen, member, without = seen.only(np.asarray(judged)), member[judged], without[:, judged]
    known = np.stack([seen.means(each) for each in confidences(np.concatenate([losses[None], references]))])
    # What models without the unit make of it: how hard it is, and whether the two groups are alike to begin with.
    alone = np.where(without, known[1:], 0.0).sum(0) / without.sum(0)
    control = auc(alone[member], alone[~member], _CONTROL_CONFIDENCE)
    scores = {"membership.loss": -seen.means(losses), "membership.lira": offline_scores(known[0], known[1:], without)}
    claim = claim_of(target, charges, seen.unit)
    return [
        membership_entry(
            attack, name, seen.unit, score[member], score[~member], claim, confidence,
            _groups(target, seen, score, member, alone) | {"shadows": len(references)}, control,
        )
        for attack, score in scores.items()
    ]


def _groups(target: Target, seen: _Seen, score: np.ndarray, member: np.ndarray, alone: np.ndarray) -> dict[str, Any]:
    """Area under the curve for the tenth that is hardest to models that never saw it, each hospital, each sex."""
    names = np.array(target.federation.names)[seen.site]
    tenth = {"hardest tenth": alone <= np.quantile(alone, 0.1)}
    found = {"hardest": _by_group(tenth, score, member), "hospitals": _by_group(_equal(names), score, member)}
    if "sex" in target.dataset.columns:
        found["sex"] = _by_group(_equal(target.dataset.columns["sex"][seen.rows]), score, member)
    return {key: value for key, value in found.items() if value}


def _equal(values: np.ndarray) -> dict[str, np.ndarray]:
    return {str(value): values == value for value in np.unique(values) if str(value)}


def _by_group(groups: Mapping[str, np.ndarray], score: np.ndarray, member: np.ndarray) -> dict[str, Any]:
    found = {}
    for name, mine in groups.items():
        inside, outside = score[mine & member], score[mine & ~member]
        if min(len(inside), len(outside)) >= _LEAST_GROUP:
            found[name] = {"auc": figure(auc(inside, outside)), "members": len(inside), "non_members": len(outside)}
    return found
