"""The white-box canary audit: is one step as private as it says?

One canary, as extreme as an adversary can make it, is added or left out; the release is projected on the direction in
which the canary shows; from many releases of both worlds follows a lower bound of mu. For correct code at noise
multiplier sigma the truth is mu = 1 / sigma, and the bound lies just under it. Half the noise, a missing clip, noise
that repeats, or a layer that mixes patients push the bound above the claim, and the verdict is "violation".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedimaging.audits.bounds import two_world_bounds
from fedimaging.errors import PrivacyError, bad_value
from fedimaging.privacy.gaussian import gaussian_epsilon

Mechanism = Callable[[bool, int], np.ndarray]
"""(canary present, number of the trial) -> the release, as one vector (D,). Every call draws its own noise."""


@dataclass(frozen=True)
class WhiteBoxAudit:
    """What the audit saw. `mu_low` and `epsilon_low` hold with the confidence asked for; `mu_hat` is an estimate.

    verdict: "violation" where mu_low is above the claim; "inconclusive" where the canary could not be seen at all;
    else "consistent", which is no proof of the claim.
    """

    mu_hat: float
    mu_low: float
    epsilon_low: float
    claimed_mu: float
    claimed_epsilon: float
    false_positives: int
    false_negatives: int
    trials: int

    @property
    def verdict(self) -> str:
        """One of "violation", "inconclusive", "consistent"."""
        if self.mu_low > self.claimed_mu:
            return "violation"
        return "consistent" if self.mu_low > 0 else "inconclusive"


def audit_mechanism(
    mechanism: Mechanism,
    direction: np.ndarray,
    noise_multiplier: float,
    *,
    trials: int = 1000,
    delta: float = 1e-5,
    confidence: float = 0.95,
) -> WhiteBoxAudit:
    """Run the mechanism `trials` times with and without its canary (and a fifth more, to place the threshold).

    direction (D,): where the canary shows, e.g. the difference of the two noiseless releases; any length but zero.
    noise_multiplier: what the mechanism claims. epsilon figures are for one release at `delta`. Error: PrivacyError
    for a direction without length, and for a claim of no noise.
    """
    length = float(np.linalg.norm(direction))
    if not (length > 0 and math.isfinite(length)):
        raise PrivacyError(bad_value("length of direction", length, "must be above 0", "the canary changes nothing"))
    if not noise_multiplier > 0:
        raise PrivacyError(bad_value("noise_multiplier", noise_multiplier, "must be above 0 to claim anything"))
    place = max(1, trials // 5)
    absent, present = (
        np.array([mechanism(world, trial) @ direction for trial in range(place + trials)]) / length for world in (False, True)
    )
    # The threshold is placed on trials that are not counted, so that it cannot fit itself to their luck.
    threshold = (absent[:place].mean() + present[:place].mean()) / 2
    absent, present = absent[place:], present[place:]
    fp, fn = int((absent > threshold).sum()), int((present <= threshold).sum())
    _, mu_low = two_world_bounds(fp, fn, trials, delta, confidence)
    claimed = 1 / noise_multiplier
    return WhiteBoxAudit(
        mu_hat=_mu_hat(absent, present),
        mu_low=mu_low,
        epsilon_low=gaussian_epsilon(mu_low, delta),
        claimed_mu=claimed,
        claimed_epsilon=gaussian_epsilon(claimed, delta),
        false_positives=fp,
        false_negatives=fn,
        trials=trials,
    )


def _mu_hat(absent: np.ndarray, present: np.ndarray) -> float:
    """Distance of the two worlds in standard deviations of the noise; infinity where there is none."""
    noise = math.sqrt((absent.var(ddof=1) + present.var(ddof=1)) / 2)
    gap = float(present.mean() - absent.mean())
    return gap / noise if noise > 0 else math.inf
