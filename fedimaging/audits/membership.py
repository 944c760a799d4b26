"""How well scores tell members from non-members, and whether that is more than a guarantee allows.

A score is one number a unit (a patient with all scans, or a record), greater where the attacker believes in membership.
The figure of merit is the true positive rate at a low false positive rate (Carlini et al. 2022); the area under the curve
is beside it, with the interval of DeLong et al. 1988. Intervals treat units as independent; those of one run share its
training, so they are a little too narrow.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from fedimaging.audits.bounds import rate_at_least, rate_at_most
from fedimaging.errors import PrivacyError, bad_value

FALSE_POSITIVE_RATES = (0.001, 0.01)


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; NaN ends where no interval can be given."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class HitRate:
    """True positive rate at the threshold that lets pass `false_alarms` of the non-members: at most the nominal `fpr`."""

    fpr: float
    hits: int
    members: int
    false_alarms: int
    non_members: int

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """The rate with its two-sided Clopper-Pearson interval."""
        one_sided = 1 - (1 - confidence) / 2
        low, high = (bound(self.hits, self.members, one_sided) for bound in (rate_at_least, rate_at_most))
        return Estimate(self.hits / self.members, low, high)


@dataclass(frozen=True)
class Judgement:
    """verdict: "violation", "inconclusive" or "consistent"; `why` in one sentence."""

    verdict: str
    why: str


def auc(members: np.ndarray, non_members: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Chance that a member (M,) scores above a non-member (N,), ties counting half. Error: PrivacyError where either
    group is empty or a score is not finite."""
    _check(members, non_members)
    m, n = len(members), len(non_members)
    ranks = rankdata(np.concatenate([members, non_members]))
    above = (ranks[:m] - rankdata(members)) / n  # of each member: the share of non-members below it
    below = 1 - (ranks[m:] - rankdata(non_members)) / m
    value = float(above.mean())
    if m < 2 or n < 2:
        return Estimate(value, math.nan, math.nan)
    deviation = math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    if deviation == 0:  # a perfect order: DeLong's variance vanishes, a rate of as many trials does not
        one_sided = 1 - (1 - confidence) / 2
        low, high = rate_at_least(min(m, n), min(m, n), one_sided), rate_at_most(0, min(m, n), one_sided)
        return Estimate(value, low if value == 1 else value, high if value == 0 else value)
    reach = float(ndtri(1 - (1 - confidence) / 2)) * deviation
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))


def hit_rate(members: np.ndarray, non_members: np.ndarray, fpr: float) -> HitRate | None:
    """The rate at a false positive rate of at most `fpr`; None where that is less than one of the non-members."""
    _check(members, non_members)
    allowed = math.floor(fpr * len(non_members) + 1e-9)
    if allowed < 1:
        return None
    threshold = np.sort(non_members)[::-1][allowed]  # strictly above it lie at most `allowed` of them
    hits, false_alarms = int((members > threshold).sum()), int((non_members > threshold).sum())
    return HitRate(fpr, hits, len(members), false_alarms, len(non_members))


def judge(rates: list[HitRate], ceiling: Callable[[float], float], confidence: float) -> Judgement:
    """Do these rates prove more than the ceiling (greatest true positive rate at a false positive rate) allows?

    confidence: of each rate's verdict; the doubt is shared by the limits of its two rates, so the false positive rate is
    taken at its upper limit. Inconclusive where no outcome with as many members and non-members could prove a violation.
    """
    each = 1 - (1 - confidence) / 2
    able = False
    for rate in rates:
        allowed = ceiling(rate_at_most(rate.false_alarms, rate.non_members, each))
        able |= rate_at_least(rate.members, rate.members, each) > allowed
        low = rate_at_least(rate.hits, rate.members, each)
        if low > allowed:
            return Judgement("violation", (
                f"{rate.hits} of {rate.members} members were found at {rate.false_alarms} false alarms among "
                f"{rate.non_members}: at least {low:.1%}, where the guarantee allows at most {allowed:.1%}."
            ))
    if not able:
        return Judgement("inconclusive", (
            "even an attack that finds every member would not pass the ceiling with so few patients, or at so great an "
            "epsilon; more non-members, or a smaller epsilon, are needed."
        ))
    shown = ", ".join(f"{rate.hits / rate.members:.1%} found at {rate.fpr:.1%} false alarms" for rate in rates)
    return Judgement("consistent", f"{shown}: no more than the guarantee allows, which is no proof of it.")


def unit_means(values: np.ndarray, unit_of_row: np.ndarray, units: int) -> np.ndarray:
    """(R,) values of rows and the unit of each -> (U,) the mean of each unit's rows."""
    counts = np.bincount(unit_of_row, minlength=units)
    return np.asarray(np.bincount(unit_of_row, values, minlength=units) / counts)


def _check(members: np.ndarray, non_members: np.ndarray) -> None:
    sizes = (len(members), len(non_members))
    if 0 in sizes or not (np.isfinite(members).all() and np.isfinite(non_members).all()):
        rule = "must both be above 0, with finite scores"
        raise PrivacyError(bad_value("numbers of members and non-members", sizes, rule, "attack a larger study"))
