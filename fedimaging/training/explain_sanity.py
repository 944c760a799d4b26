"""Does a map lie where the answer is, and does it change with the weights? After Adebayo et al. 2018, Sanity Checks for
Saliency Maps. Maps are arrays (*spatial) of numbers not below 0."""

import numpy as np


def top_share(values: np.ndarray, mask: np.ndarray, top: float = 0.05) -> float:
    """Of what the strongest `top` of a map's pixels hold, the share inside `mask`; by chance it is the mask's share of the area.

    An empty map counts as chance, and so do pixels that share the last place with others.
    """
    flat, inside = values.ravel().astype(np.float64), mask.ravel() > 0
    least = np.partition(flat, -max(1, round(top * flat.size)))[-max(1, round(top * flat.size))]
    if flat.max() <= 0:
        return float(inside.mean())
    held = np.where(flat >= least, flat, 0.0)
    return float(held[inside].sum() / held.sum())


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two maps over their pixels; NaN where one of them is even."""
    from scipy.stats import rankdata

    ranks = [rankdata(values.ravel()) for values in (one, other)]
    if any(rank.std() == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
