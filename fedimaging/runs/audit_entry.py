"""One line of an audit: what was attacked, how well, what the guarantee allows, and the verdict."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedimaging.audits.membership import FALSE_POSITIVE_RATES, Estimate, auc, hit_rate, judge

VERDICTS = ("violation", "inconclusive", "consistent", "no claim")
"""Worst first. "no claim": the study promises nothing, so nothing can be broken."""

Entry = dict[str, Any]
"""One element of `attacks` in audit.json."""


@dataclass(frozen=True)
class Claim:
    """What a guarantee allows: the greatest true positive rate at a false positive rate, and its epsilon."""

    ceiling: Callable[[float], float]
    epsilon: float


def entry(
    name: str, target: str, unit: str, sizes: Mapping[str, int], metrics: Mapping[str, Any], claim: Claim | None,
    verdict: tuple[str, str], groups: Mapping[str, Any] | None = None,
) -> Entry:
    """The line as JSON. Without a claim the verdict becomes "no claim"."""
    word, why = verdict if claim is not None or verdict[0] == "inconclusive" else ("no claim", _without_claim(verdict[1]))
    return {
        "name": name, "target": target, "unit": unit, "sizes": dict(sizes), "metrics": dict(metrics),
        "ceiling": None if claim is None else ceiling_json(claim), "verdict": word, "why": why, "groups": dict(groups or {}),
    }


def ceiling_json(claim: Claim) -> dict[str, float]:
    """What the guarantee allows, at the false positive rates that are reported."""
    return {rate_name(fpr): claim.ceiling(fpr) for fpr in FALSE_POSITIVE_RATES} | {"epsilon": claim.epsilon}


def rate_name(fpr: float) -> str:
    """`tpr_at_0.1%`."""
    return f"tpr_at_{fpr:.1%}".replace(".0%", "%")


def figure(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as JSON; a missing end is null."""
    return {key: None if math.isnan(x) else x for key, x in vars(estimate).items()}


def figure_low(value: float, low: float | None = None) -> dict[str, float | None]:
    """A figure of which only a lower limit is known; without `low` the figure is that limit itself."""
    return {"value": value, "low": value if low is None else low, "high": None}


def membership_entry(
    name: str, target: str, unit: str, members: np.ndarray, non_members: np.ndarray, claim: Claim | None, confidence: float,
    groups: Mapping[str, Any] | None = None, control: Estimate | None = None,
) -> Entry:
    """The line of one membership attack. `control`: the area under the curve of the same groups where neither was trained
    on; off 0.5, the groups differ by themselves, and a high rate is no proof of a violation.

    `confidence`: of the verdict, which pays for all verdicts of the audit; the intervals shown are at 95 %.
    """
    rates = {fpr: hit_rate(members, non_members, fpr) for fpr in FALSE_POSITIVE_RATES}
    metrics: dict[str, Any] = {"auc": figure(auc(members, non_members))}
    metrics |= {rate_name(fpr): None if rate is None else figure(rate.estimate()) for fpr, rate in rates.items()}
    told = dict(groups or {})
    if control is not None:
        told["control"] = {"auc": figure(control)}
    verdict = ("inconclusive", _too_few(len(non_members)))
    if claim is None:
        low = metrics["auc"]["low"]
        verdict = ("consistent", "membership shows" if low is not None and low > 0.5 else "membership does not show")
    elif any(rates.values()):
        found = judge([rate for rate in rates.values() if rate is not None], claim.ceiling, confidence)
        verdict = (found.verdict, found.why)
        if found.verdict == "violation" and control is not None and not control.low <= 0.5 <= control.high:
            verdict = ("inconclusive", (
                f"{found.why} But a model that saw neither group tells them apart, too (AUC {control.value:.2f}): they differ by "
                "themselves; test patients drawn from the same pool as the training patients are needed."
            ))
    sizes = {"members": len(members), "non_members": len(non_members)}
    return entry(name, target, unit, sizes, metrics, claim, verdict, told)


def worst(verdicts: list[str]) -> str:
    """The worst of several; "no claim" of none."""
    return min(verdicts, key=VERDICTS.index, default="no claim")


def _too_few(n: int) -> str:
    return f"1 % of {n} non-members is less than one patient; at least 100 are needed."


def _without_claim(why: str) -> str:
    return f"no differential privacy, so nothing is promised: {why}"
