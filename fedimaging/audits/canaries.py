"""Canary patients of the worst kind that clipping permits, and what guessing them proves about epsilon.

A canary's clipped gradient is a direction of its own, one clip norm long; no two directions overlap. Each canary is in with
probability 1/2 and, where it is in, enters each step like any patient: by Poisson sampling. Whoever guesses from the
hospital's updates which canaries were in gets a lower bound of epsilon out of a single run (Steinke, Nasr and Jagielski
2023); counted as two worlds, a sharper one that holds for the trade-off the ledger claims.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedimaging.audits.bounds import one_run_bound, rate_at_least, rate_at_most, two_world_bounds
from fedimaging.errors import PrivacyError, bad_value
from fedimaging.privacy.noise import NoiseSource

GUESSED = (0.1, 0.25, 0.5, 1.0)
"""Shares of the canaries that are guessed, fixed before any run; the bound pays for choosing the best."""


class Canaries:
    """`count` directions in a space of `size` numbers, each a random vector on coordinates of its own; `present` (M,) bool are
    the coins. One vector of `size` numbers holds them all, whatever their count.

    Error: PrivacyError for fewer numbers than canaries.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        if not 2 <= count <= size:
            raise PrivacyError(bad_value("canaries", count, f"must be at least 2 and at most the {size} numbers that train"))
        rng = np.random.default_rng([seed, count, size])
        self.count, self.size = count, size
        self.present: np.ndarray = rng.random(count) < 0.5
        self._owner = rng.permutation(size) % count
        values = rng.standard_normal(size)
        values /= np.sqrt(np.bincount(self._owner, values**2, minlength=count))[self._owner]
        self._values: np.ndarray = values.astype(np.float32)

    def total(self, chosen: np.ndarray) -> np.ndarray:
        """(V,) the sum of the chosen (M,) canaries' unit vectors."""
        return np.asarray(self._values * chosen.astype(np.float32)[self._owner])

    def project(self, vector: np.ndarray) -> np.ndarray:
        """(M,) the length of a vector (V,) along each canary."""
        return np.bincount(self._owner, self._values * vector.astype(np.float64), minlength=self.count)


class WithCanaries:
    """A noise source through which canaries enter a private step: added to the clipped sum before the noise is.

    This is all that an audit changes of a hospital: its sampler, clip, noise and denominator stay as they are. Only an
    audit makes one; no study or message can. `others(step, vector)` is told the clipped sum of the real patients (V,), which an
    attacker who knows everybody but the canaries knows too.
    """

    def __init__(
        self, noise: NoiseSource, canaries: Canaries, clip_norm: float, places: np.ndarray,
        others: Callable[[int, np.ndarray], None],
    ) -> None:
        self._noise, self._canaries, self._clip, self._places, self._others = noise, canaries, clip_norm, places, others
        self._rate = 1.0

    @property
    def name(self) -> str:
        """See `NoiseSource`."""
        return self._noise.name

    def inclusion(self, step: int, n_units: int, sample_rate: float) -> np.ndarray:
        """See `NoiseSource`."""
        self._rate = sample_rate
        return self._noise.inclusion(step, n_units, sample_rate)

    def generator(self, step: int, purpose: str) -> np.random.Generator:
        """See `NoiseSource`."""
        return self._noise.generator(step, purpose)

    def add_gaussian(self, tensors: Sequence[Tensor], std: float, step: int, *, over: float = 1.0) -> None:
        """Add the canaries that this step draws, then the noise of the source beneath."""
        import torch

        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        self._others(step, flat.cpu().numpy().astype(np.float64))
        drawn = self.generator(step, "canaries").random(self._canaries.count) < self._rate
        canary = torch.zeros_like(flat)
        canary[torch.from_numpy(self._places).to(flat.device)] = torch.from_numpy(
            self._canaries.total(self._canaries.present & drawn) * np.float32(self._clip)
        ).to(flat)
        for tensor, piece in zip(tensors, canary.split([t.numel() for t in tensors]), strict=True):
            tensor.detach().add_(piece.view(tensor.shape))
        self._noise.add_gaussian(tensors, std, step, over=over)


@dataclass(frozen=True)
class CanaryAudit:
    """What the guesses prove. `epsilon_low`: at the confidence asked for, for any mechanism. `mu_low` and `mu_epsilon_low` hold
    for mechanisms with a Gaussian trade-off. The counts are of canaries that were in (`present`) and out (`absent`)."""

    epsilon_low: float
    guesses: int
    correct: int
    mu_low: float
    mu_epsilon_low: float
    found: int
    present: int
    false_alarms: int
    absent: int
    confidence: float

    def rate_limits(self) -> tuple[float, float]:
        """(lower limit of the true positive rate, upper limit of the false positive rate), together at the confidence."""
        each = 1 - (1 - self.confidence) / 2
        return rate_at_least(self.found, self.present, each), rate_at_most(self.false_alarms, self.absent, each)


def audit_canaries(
    scores: np.ndarray, present: np.ndarray, threshold: float, delta: float, confidence: float
) -> CanaryAudit:
    """scores (M,): greater where the attacker believes that the canary was in; present (M,) bool: the truth.

    threshold: fixed without looking at the truth. The one-run bound is the best over `GUESSED`, each at the confidence that
    pays for trying them all. Error: PrivacyError where no canary, or every one, was in.
    """
    from fedimaging.privacy.gaussian import gaussian_epsilon

    if present.all() or not present.any():
        raise PrivacyError(bad_value("canaries", len(present), "fell all on one side of the coin", "use more"))
    each = 1 - (1 - confidence) / len(GUESSED)
    best = (0.0, 0, 0)
    for share in GUESSED:
        guesses = 2 * max(1, round(share * len(scores) / 2))
        order = np.argsort(-scores, kind="stable")
        correct = int(present[order[: guesses // 2]].sum() + (~present[order[-(guesses // 2):]]).sum())
        best = max(best, (one_run_bound(len(scores), guesses, correct, delta, each), correct, guesses))
    said = scores > threshold
    found, false_alarms = int((said & present).sum()), int((said & ~present).sum())
    n_in, n_out = int(present.sum()), int((~present).sum())
    mu_low = two_world_bounds(false_alarms, n_in - found, n_out, delta, confidence, trials_present=n_in)[1]
    return CanaryAudit(
        epsilon_low=best[0], guesses=best[2], correct=best[1], mu_low=mu_low, mu_epsilon_low=gaussian_epsilon(mu_low, delta),
        found=found, present=n_in, false_alarms=false_alarms, absent=n_out, confidence=confidence,
    )


def sgd_weights(steps: int, momentum: float) -> np.ndarray:
    """(T,) how much of each step's gradient a round of SGD, begun without momentum, moves the weights by, in learning rates."""
    return np.asarray((1 - momentum ** np.arange(steps, 0, -1.0)) / (1 - momentum))
