"""How far apart groups of patients lie in a metric: the difference between the best and the worst, and whether chance
alone would give as much.

The interval is that of the difference between the two groups that came out best and worst, by bootstrap over patients; two
extremes of several groups differ by chance too, which is what the permutation test answers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedimaging.results import Interval
from fedimaging.training.bootstrap import Statistic, interval

_CELLS = 4_000_000  # weights held at a time (permutations x scans): 32 MB
_PERMUTATIONS_KEY = 1 << 64  # beside the bootstrap's stream of the same seed


@dataclass(frozen=True)
class GroupGap:
    """`best`, `worst`: codes of the groups. `gap`: their difference, positive, with a 95 % interval of this difference.
    `p_value`: how often groups dealt at random over the same patients lie at least as far apart."""

    best: int
    worst: int
    gap: Interval
    p_value: float


def group_gap(
    statistic: Statistic, group: np.ndarray, patient_ids: np.ndarray, *, lower_is_better: bool, resamples: int, seed: int
) -> GroupGap | None:
    """The gap of a metric over groups, or None where fewer than two groups have a value.

    `statistic`: scan weights (R, S) -> (R,). `group` (S,): code of each scan's group, the same for all scans of a patient,
    below 0 for none. A group where the metric is not defined is left out. p = (1 + hits) / (1 + permutations), after
    Phipson and Smyth 2010, so that it is never 0.
    """
    codes = np.unique(group[group >= 0])
    masks = {int(code): (group == code).astype(np.float64) for code in codes}
    values = {code: float(statistic(mask[None])[0]) for code, mask in masks.items()}
    values = {code: value for code, value in values.items() if np.isfinite(value)}
    if len(values) < 2:
        return None
    high, low = max(values, key=lambda code: values[code]), min(values, key=lambda code: values[code])

    def difference(weights_RS: np.ndarray) -> np.ndarray:
        return statistic(weights_RS * masks[high]) - statistic(weights_RS * masks[low])

    point = values[high] - values[low]
    compared = np.isin(group, list(values))
    found = interval(point, difference, patient_ids, resamples=resamples, seed=seed)
    found = Interval(found.value, found.low, found.high, len(np.unique(patient_ids[compared])))
    p_value = _p_value(statistic, np.where(compared, group, -1), patient_ids, point, resamples, seed)
    best, worst = (low, high) if lower_is_better else (high, low)
    return GroupGap(best, worst, found, p_value)


def _p_value(
    statistic: Statistic, group: np.ndarray, patient_ids: np.ndarray, point: float, permutations: int, seed: int
) -> float:
    hits = 0
    codes = np.unique(group[group >= 0])
    for dealt_PS in _dealt(group, patient_ids, permutations, seed):
        values = np.stack([statistic((dealt_PS == code).astype(np.float64)) for code in codes])
        spread = np.where(np.isfinite(values), values, -np.inf).max(0) - np.where(np.isfinite(values), values, np.inf).min(0)
        hits += int((spread >= point - 1e-12).sum())
    return (1 + hits) / (1 + permutations)


def _dealt(group: np.ndarray, patient_ids: np.ndarray, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Groups (P, S) dealt again over the patients that have one; sizes stay, and a patient's scans stay together."""
    rng = np.random.Generator(np.random.Philox(key=_PERMUTATIONS_KEY + seed))
    inside = np.flatnonzero(group >= 0)
    _, first, member = np.unique(patient_ids[inside], return_index=True, return_inverse=True)
    of_patient = group[inside][first]
    left = permutations
    while left:
        count = min(left, max(1, _CELLS // len(group)))
        dealt = np.full((count, len(group)), -1, dtype=group.dtype)
        dealt[:, inside] = rng.permuted(np.tile(of_patient, (count, 1)), axis=1)[:, member]
        yield dealt
        left -= count
