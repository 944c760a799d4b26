"""Hospital-level differential privacy at the server: each hospital's update is clipped, and the mean is noised.

What it protects: all that one hospital contributes, from the hospitals and everybody else who sees the model, but not from
the server, which sees every update. Neighbours: the same federation, with one hospital's updates replaced by zeros. Which
hospitals take part, and which answer, is public and not protected. Evaluations are not covered.

Guarantee of one round: the sum of the clipped updates moves by at most clip_norm between neighbours, whoever answers; it
gets N(0, (noise_multiplier * clip_norm)²) in every coordinate, and is divided by the number of hospitals that were asked,
a public constant. So a round is one Gaussian mechanism without sampling, for every hospital. A cohort (`sites_per_round`)
is drawn from public numbers, so it amplifies nothing; all rounds are counted for all hospitals.

With few hospitals this is mostly formal: at epsilon 3 over 50 rounds five hospitals need noise of 1.5 clip norms in every
coordinate of the mean, whose whole length without noise is at most one.
Source: McMahan et al. 2018, with fixed clipping. Adaptive clipping is not offered: its counts are releases too.
"""

from collections.abc import Callable

import numpy as np
from pydantic import Field

from fedimaging.aggregation.mean import l2_norm
from fedimaging.errors import FedimagingError, bad_value
from fedimaging.spec import Spec


class SitePrivacySpec(Spec):
    """clip_norm: the longest update that counts in full, a public constant. noise_multiplier: of the noise on the SUM of the
    clipped updates, over clip_norm. delta: of the guarantee for one hospital."""

    clip_norm: float = Field(gt=0)
    noise_multiplier: float = Field(gt=0)
    delta: float = Field(1e-3, gt=0, lt=1)


class PrivateMean:
    """The mean of clipped updates (P,), noised; `add` and `result` as `StreamingMean`, one update in memory at a time.

    asked: how many hospitals were asked in this round; the denominator, however many answer. add_noise(vector, std): adds
    N(0, std²) to every element of a float64 vector in place; called once.
    """

    def __init__(self, spec: SitePrivacySpec, asked: int, add_noise: Callable[[np.ndarray, float], None]) -> None:
        if asked < 1:
            raise FedimagingError(bad_value("asked", asked, "must be at least 1"))
        self._spec, self._asked, self._add_noise = spec, asked, add_noise
        self._sum: np.ndarray | None = None
        self.count = 0

    def add(self, update: np.ndarray, weight: float = 1.0) -> None:
        """Add one update, scaled to at most clip_norm. Errors: a weight other than 1 (the sensitivity would change), more
        updates than hospitals asked, another length than the first, not finite."""
        if weight != 1.0:
            raise FedimagingError(bad_value("weight", weight, "must be 1 under site_privacy", "use weights: uniform"))
        if self.count == self._asked:
            raise FedimagingError(f"more than the {self._asked} updates that were asked for arrived; the round is void.")
        norm = l2_norm(update)
        if not np.isfinite(norm):
            raise FedimagingError("an update holds NaN or infinite numbers; it was not added.")
        if self._sum is None:
            self._sum = np.zeros(update.shape, np.float64)
        if update.shape != self._sum.shape:
            raise FedimagingError(f"an update has shape {update.shape}, the others {self._sum.shape}.")
        self._sum += update.astype(np.float64) * min(1.0, self._spec.clip_norm / max(norm, self._spec.clip_norm))
        self.count += 1

    def result(self) -> np.ndarray:
        """The noised mean (P,) in float64: a release. Error: nothing was added, or it was released already."""
        if self._sum is None:
            raise FedimagingError("no update was added, or the mean was released already; there is no mean.")
        total, self._sum = self._sum, None
        self._add_noise(total, self._spec.noise_multiplier * self._spec.clip_norm)
        return total / self._asked
