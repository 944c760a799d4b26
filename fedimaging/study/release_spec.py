"""The `release:` block of a study: what a model must have shown before a named person may release it."""

from typing import Literal

from pydantic import Field

from fedimaging.spec import Spec


class ReleaseSpec(Spec):
    """Limits set before anybody trains; `fedimaging release` refuses a run that breaks one, or waives it by name.

    minimum_external: least value of the primary metric (AUROC, or Dice for segmentation) at hospitals that never trained:
        over the held-out hospitals together, and at each hospital left out in turn, where that was run.
    largest_subgroup_gap: between the best and the worst group of any column of `evaluation.groups`, in the primary metric.
    largest_calibration_error: expected calibration error on test patients, after calibration where there is one.
    audit: `required` refuses a model that `fedimaging audit` has not found consistent with its guarantee.
    minimum_count: a count of fewer patients than this appears nowhere in the release folder.
    intended_use, not_for: for the model card, in the words of those who answer for the model.
    What is always checked needs no key: ledgers, fingerprints, the privacy claim, a finished run.
    """

    minimum_external: float | None = Field(None, ge=0, le=1)
    largest_subgroup_gap: float | None = Field(None, ge=0, le=1)
    largest_calibration_error: float | None = Field(None, ge=0, le=1)
    audit: Literal["required", "optional"] = "optional"
    minimum_count: int = Field(10, ge=2)
    intended_use: str | None = None
    not_for: tuple[str, ...] = ()
