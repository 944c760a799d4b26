"""How far the server follows a noisy mean: the learning rate falls as the noise rises.

With DP-SGD the best learning rate is lower the more noise there is, and the noise follows from public numbers before anybody
trains. So the server shortens each round's mean update until the noise in it is at most `federation.noise_limit`. This is
post-processing of what the hospitals released, and costs no privacy.
"""

import math
from collections.abc import Collection, Mapping


def update_scale(
    limit: float | None, noise: Mapping[str, float], weights: Mapping[str, float], sites: Collection[str]
) -> float:
    """The factor, at most 1, for the weighted mean of the updates of `sites`.

    noise: standard deviation, per coordinate, of the noise in each hospital's update; empty where there is none. weights: of
    each hospital in the mean.
    """
    if limit is None or not noise:
        return 1.0
    total = sum(weights[site] for site in sites)
    deviation = math.sqrt(sum((weights[site] * noise[site]) ** 2 for site in sites)) / total
    return min(1.0, limit / deviation) if deviation > 0 else 1.0
