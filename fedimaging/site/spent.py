"""What a hospital's ledger says was spent on its patients."""

from collections.abc import Sequence
from typing import Any

from fedimaging.privacy.accounting import epsilon, epsilon_rdp
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.group import patient_epsilon
from fedimaging.privacy.ledger import Ledger
from fedimaging.results import PrivacySpent

EVALUATION = "/evaluation"
"""Ends the name under which the ledger books a noised evaluation."""
CALIBRATION = "/calibration"
"""The same of a noised calibration."""


def spent_by(ledger: Ledger, budget: Budget, plan: DpPlan | None, release_noise: float, noise: str) -> PrivacySpent:
    """All charges by PLD, with RDP beside it. plan None: nothing was trained, and `release_noise` is the noise multiplier of
    what was released. `noise`: the name of the generator."""
    charges = ledger.charges()
    # Charges of mixed units are read for patients. A hospital that only evaluates has no plan.
    unit = plan.unit if plan and {charge.unit for charge in charges} <= {plan.unit} else "patient"
    reserved = [row.facts["run"] for row in ledger.rows() if row.kind == "reserved"]
    return PrivacySpent(
        unit=unit,
        epsilon=epsilon(charges, budget.delta),
        delta=budget.delta,
        budget_epsilon=budget.epsilon,
        accountant="PLD",
        steps=sum(charge.steps for charge in charges),
        noise_multiplier=plan.noise_multiplier if plan else release_noise,
        sample_rate=plan.sample_rate if plan else 1.0,
        epsilon_rdp=epsilon_rdp(charges, budget.delta),
        noise=noise,
        evaluations=sum(run.endswith(EVALUATION) for run in reserved),
        calibrations=sum(run.endswith(CALIBRATION) for run in reserved),
        **_read_for_patients(unit, charges, budget.delta),
    )


def _read_for_patients(unit: str, charges: Sequence[Charge], delta: float) -> dict[str, Any]:
    """The two facts of PrivacySpent that read a record-level claim for whole patients; none where no bound is known."""
    bounds = [charge.scans_per_patient for charge in charges if charge.unit == "record"]
    known = [bound for bound in bounds if bound is not None]
    if unit != "record" or not known or len(known) < len(bounds):
        return {}
    return {"scans_per_patient": max(known), "patient_epsilon": patient_epsilon(charges, delta)}
