"""What an attack's hits and misses prove about epsilon, at a stated confidence. A bound of 0 proves nothing."""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import beta, binom


def rate_at_most(errors: int, trials: int, confidence: float) -> float:
    """Clopper-Pearson upper bound of an error rate, one-sided."""
    return 1.0 if errors >= trials else float(beta.ppf(confidence, errors + 1, trials - errors))


def rate_at_least(hits: int, trials: int, confidence: float) -> float:
    """Clopper-Pearson lower bound of a rate, one-sided."""
    return 0.0 if trials == 0 else 1.0 - rate_at_most(trials - hits, trials, confidence)


def two_world_bounds(
    fp: int, fn: int, trials: int, delta: float, confidence: float = 0.95, *, trials_present: int | None = None
) -> tuple[float, float]:
    """(epsilon, mu) that the mechanism must at least have, from `trials` runs in each of two neighbouring worlds
    (`trials_present` in the second, where it is another number).

    fp: guessed "present" where the canary was absent; fn: the reverse. Each error rate gets half of the doubt. Epsilon
    follows from the definition of (epsilon, delta); mu holds for mechanisms with a Gaussian trade-off, as one step is.
    """
    each = 1 - (1 - confidence) / 2
    fpr, fnr = rate_at_most(fp, trials, each), rate_at_most(fn, trials if trials_present is None else trials_present, each)
    ratios = [(1 - delta - other) / rate for rate, other in ((fpr, fnr), (fnr, fpr))]
    return math.log(max(1.0, *ratios)), max(0.0, float(-ndtri(fpr) - ndtri(fnr)))


def one_run_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Epsilon that training must at least have, from one run with coin-flipped canaries (Steinke et al. 2023).

    Of `canaries`, each included with probability 1/2, the attacker guessed `guesses` and got `correct` right.
    """

    def doubt(epsilon: float) -> float:
        chance = 1 / (1 + math.exp(-epsilon))
        # At delta > 0 the adversary may shift a little mass: the worst average over 1..correct fewer right guesses.
        below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
        shift = float(np.max(below / np.arange(1, correct + 1), initial=0.0))
        return float(binom.sf(correct - 1, guesses, chance)) + 2 * canaries * delta * shift - (1 - confidence)

    return 0.0 if doubt(0.0) >= 0 else float(brentq(doubt, 0.0, 50.0, xtol=1e-9))
