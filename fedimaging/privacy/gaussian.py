"""The plain Gaussian mechanism, exactly: N(0, 1) against N(mu, 1), in either direction (Balle and Wang 2018).

T releases without sampling at noise multiplier sigma are one Gaussian with mu = sqrt(T) / sigma.
"""

import math

from fedimaging.errors import PrivacyError, bad_value


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The least delta at which a Gaussian of this mu is (epsilon, delta)-private."""
    if mu == 0:
        return 0.0
    from scipy.special import log_ndtr  # here, because SciPy takes a third of a second and 17 MB

    kept = log_ndtr(mu / 2 - epsilon / mu)
    # exp(epsilon) * Phi(-mu/2 - epsilon/mu), in logarithms: the factors overflow and underflow on their own.
    return float(math.exp(kept) * -math.expm1(min(0.0, epsilon + log_ndtr(-mu / 2 - epsilon / mu) - kept)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon >= 0 at which a Gaussian of this mu is (epsilon, delta)-private, to 1e-10."""
    if not 0 < delta < 1:
        raise PrivacyError(bad_value("delta", delta, "must lie strictly between 0 and 1"))
    if not 0 <= mu < math.inf:
        raise PrivacyError(bad_value("mu", mu, "must be finite and at least 0"))
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    from scipy.optimize import brentq

    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-10))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The greatest mu that is (epsilon, delta)-private, to 1e-10: T releases need sigma = sqrt(T) / mu."""
    if not 0 < delta < 1 or not 0 <= epsilon < math.inf:
        raise PrivacyError(bad_value("(epsilon, delta)", (epsilon, delta), "needs epsilon >= 0 and 0 < delta < 1"))
    from scipy.optimize import brentq

    high = 1.0
    while gaussian_delta(high, epsilon) <= delta:
        high *= 2
    return float(brentq(lambda mu: gaussian_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-10))
