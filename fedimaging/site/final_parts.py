"""What leaves of the final model's evaluation beside the figures over all test patients, where study and policy say so.

Validation patients, for a threshold (`evaluation.operating_point`): scores under the mode `scores`, noised totals under
`noised`, nothing under any other. Groups of test patients (`evaluation.groups`): as `release_groups` says (`groups.py`).
Each noised part is charged to the ledger as one evaluation more, before the first patient is read.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fedimaging.errors import BudgetExceeded
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.released_metrics import PatientTotals, release_charge
from fedimaging.results import Arrays, SiteEvaluation
from fedimaging.site.evaluation import evaluation_totals
from fedimaging.site.groups import groups_of, released_metrics, released_totals
from fedimaging.site.policy import SitePolicy
from fedimaging.study.schema import SimulatedHospitals, Study
from fedimaging.training.evaluate import Evaluated
from fedimaging.training.tasks import Task
from fedimaging.training.workbench import SiteRecords

VALIDATION, GROUPS = "/validation/evaluation", "/groups/evaluation"
"""End the names under which the ledger books these parts."""


@dataclass(frozen=True)
class FinalParts:
    """One hospital's final evaluation. `evaluated(records)`: the final model on these patients. `noised(name, totals_of)`: the
    totals with the noise of an evaluation, charged under the name before `totals_of` reads a patient. `refused(code)`: note that
    a part did not leave."""

    study: Study
    policy: SitePolicy
    task: Task
    evaluated: Callable[[SiteRecords], Evaluated]
    noised: Callable[[str, Callable[[], PatientTotals]], Arrays]
    refused: Callable[[str], None]

    def added_to(self, reply: SiteEvaluation, test: SiteRecords, validation: SiteRecords) -> SiteEvaluation:
        """The reply with whatever more may leave; a part that would pass the budget is left out."""
        asked = self.study.evaluation
        return replace(
            reply,
            validation=self._validation(validation) if asked.operating_point is not None and len(validation) else {},
            groups=self._groups(test) if asked.groups else {},
        )

    def _validation(self, records: SiteRecords) -> Arrays:
        if self.policy.release_evaluation == "scores":
            return self.evaluated(records).arrays
        if self.policy.release_evaluation != "noised":
            return {}
        return self._charged(VALIDATION, lambda: evaluation_totals(self.evaluated(records), self.task))

    def _charged(self, what: str, totals_of: Callable[[], PatientTotals]) -> Arrays:
        try:
            return self.noised(what, totals_of)
        except BudgetExceeded as error:
            self.refused(error.code)
            return {}

    def _groups(self, records: SiteRecords) -> Arrays:
        spec, mode = self.study.evaluation, self.policy.release_groups
        if mode == "none" or self.policy.release_evaluation == "scores":
            return {}

        def group_of(column: str) -> np.ndarray:
            return groups_of(spec, records.dataset, column, strict=False)[records.rows]

        if mode == "noised":
            return self._charged(GROUPS, lambda: released_totals(self.evaluated(records), self.task, spec, group_of))
        return released_metrics(self.evaluated(records), self.task, spec, group_of, self.policy.minimum_group)


def final_charges(study: Study, policy: SitePolicy | SimulatedHospitals) -> list[Charge]:
    """What the parts cost at most under a policy, whether or not the hospital has validation patients."""
    asked, mode = study.evaluation, policy.release_evaluation
    parts = (
        mode == "noised" and asked.operating_point is not None,
        mode not in ("none", "scores") and policy.release_groups == "noised" and bool(asked.groups),
    )
    return [release_charge(policy.evaluation_noise_multiplier)] * sum(parts)
