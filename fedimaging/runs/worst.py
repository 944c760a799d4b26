"""The worst hospital and the worst group of a run: what a mean over everybody hides.

Whoever comes out worst of several does so partly by chance. The interval is that of this one hospital or group, as if it
had been named beforehand; the number that were compared stands beside it.
"""

from collections.abc import Mapping
from typing import Any

from fedimaging.site.groups import NOT_STATED

LOWER_IS_BETTER = ("brier", "hd95_mm")


def worst_hospital(report: Mapping[str, Any], least: int) -> dict[str, Any] | None:
    """By the primary metric, among training hospitals with at least `least` test patients and a value: `hospital`, its
    interval, `compared` of them and `too_few` left out. None where fewer than two can be compared."""
    metric = report["task"]["primary_metric"]
    inside = {name: site["test"].get(metric) for name, site in report["sites"].items() if site["role"] == "train"}
    enough = {name: one for name, one in inside.items() if one and one["n_patients"] >= least}
    found = _worst(metric, {name: one for name, one in enough.items() if one["value"] is not None})
    if found is None:
        return None
    name, rest = found
    return {"hospital": name, **rest, "too_few": sum(one is not None for one in inside.values()) - len(enough)}


def worst_group(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """By the primary metric over the groups of all columns that are shown: `column`, `group`, its interval, `compared`.
    Who is not stated is no group. None where fewer than two have a value."""
    metric = report["task"]["primary_metric"]
    groups = {
        (column, group): table[metric]
        for column, tables in (report.get("groups") or {}).items() for group, table in tables.items()
        if group != NOT_STATED and metric in table and table[metric]["value"] is not None
    }
    found = _worst(metric, groups)
    if found is None:
        return None
    (column, group), rest = found
    return {"column": column, "group": group, **rest}


def _worst(metric: str, values: Mapping[Any, Mapping[str, Any]]) -> tuple[Any, dict[str, Any]] | None:
    if len(values) < 2:
        return None
    sign = -1 if metric.startswith(LOWER_IS_BETTER) else 1
    worst = min(values, key=lambda name: sign * values[name]["value"])
    return worst, {"metric": metric, **values[worst], "compared": len(values)}
