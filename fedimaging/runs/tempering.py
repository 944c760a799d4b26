"""One temperature for a run's final model: from what hospitals released to report.json and calibration.json.

    {"schema": "fedimaging-calibration/1", "kind": "temperature", "temperature": 1.8, "bias": 0.0,
     "fitted_on": {"patients": "validation", "hospitals": ["north", …]}, "charge": {"unit": "patient", "sites": {…}}}

`charge` null: nothing was charged, because no sum had noise. Probabilities at the temperature: `training.temperature.tempered`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.errors import StudyError, bad_value
from fedimaging.files import write_json
from fedimaging.privacy.gaussian import gaussian_epsilon
from fedimaging.privacy.tempering import SENSITIVITY
from fedimaging.results import Interval, SiteCalibration
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.temperature import added_curves, fit_temperature

SCHEMA = "fedimaging-calibration/1"
FILE = "calibration.json"
_DELTA = 1e-5  # at which a release is told where the study trains without privacy


def check_tempering(study: Study, federation: SimulatedFederation) -> None:
    """Error: StudyError where the study asks for a temperature and no training hospital has a validation patient: one fitted to
    training patients would only say how well the model remembers them."""
    if study.evaluation.calibration != "none" and not (federation.validation_site >= 0).any():
        rule = "is fitted on validation patients, and no hospital has one"
        remedy = "set data.split.validation, e.g. to 0.15, or mark rows of the manifest as split: validation"
        raise StudyError(bad_value("evaluation.calibration", study.evaluation.calibration, rule, remedy))


def tempering_facts(
    study: Study, released: Sequence[SiteCalibration], refused: Mapping[str, str]
) -> dict[str, Any]:
    """`temperature` of the final model (null where it is not known) with its interval over patients and noise; of each hospital's
    own sums alone; who released nothing and why; what each release costs by itself; and all of it in `words`."""
    whole = _fitted(released)
    return {
        "temperature": _json(whole), "bias": 0.0,
        "sites": {one.site: _json(_fitted([one])) for one in released},
        "refused": dict(refused), "charge": _charge(study, released), "words": _words(whole, released, refused),
    }


def write_calibration(folder: Path, facts: Mapping[str, Any] | None) -> None:
    """calibration.json, where there is a temperature; none of an earlier attempt stays where there is not."""
    temperature = facts["temperature"]["value"] if facts else None
    if facts is None or temperature is None:
        (folder / FILE).unlink(missing_ok=True)
        return
    fitted_on = {"patients": "validation", "hospitals": sorted(facts["sites"])}
    write_json(folder / FILE, {
        "schema": SCHEMA, "kind": "temperature", "temperature": temperature, "bias": facts["bias"], "fitted_on": fitted_on,
        "charge": facts["charge"],
    })


def _fitted(released: Sequence[SiteCalibration]) -> Interval:
    if not released:
        return Interval(math.nan, math.nan, math.nan, 0)
    return fit_temperature(*added_curves([(one.sums, one.noise_std) for one in released]))


def _json(found: Interval) -> dict[str, Any]:
    """Without a number of patients, which hospitals do not tell."""
    return {name: value for name, value in found.as_json().items() if name != "n_patients"}


def _charge(study: Study, released: Sequence[SiteCalibration]) -> dict[str, Any] | None:
    """Of each hospital that added noise: the noise multiplier, and the epsilon of this release alone."""
    delta = study.privacy.delta if study.privacy is not None and study.privacy.delta else _DELTA
    sites = {}
    for one in released:
        if one.noise_std > 0:
            multiplier = float(np.float32(one.noise_std)) / SENSITIVITY
            sites[one.site] = {"noise_multiplier": round(multiplier, 6), "epsilon": gaussian_epsilon(1 / multiplier, delta)}
    return {"unit": "patient", "delta": delta, "sites": sites} if sites else None


def _words(whole: Interval, released: Sequence[SiteCalibration], refused: Mapping[str, str]) -> str:
    kept = f" {len(refused)} released nothing for it ({', '.join(sorted(set(refused.values())))})." if refused else ""
    if not released:
        return f"The model is not calibrated: no hospital released what a temperature is fitted to.{kept}"
    who = f"the validation patients of {len(released)} hospital{'s' if len(released) > 1 else ''}"
    if math.isnan(whole.value):
        noise = " and the noise in their sums" if any(one.noise_std > 0 for one in released) else ""
        return f"The model is not calibrated: {who}{noise} leave its temperature unknown.{kept}"
    sure = "too sure of itself" if whole.low > 1 else "not sure enough" if whole.high < 1 else "not clearly wrong about itself"
    return (
        f"Temperature {whole.value:.2f} (95 % interval {whole.low:.2f}–{whole.high:.2f}), fitted to sums over {who}: the model "
        f"was {sure}.{kept}"
    )
