"""Privacy loss distributions of the Poisson-sampled Gaussian mechanism: pessimistic, on a grid, composed by FFT.

For two neighbouring data sets one step's output has densities P and Q. The privacy loss is log(P/Q) under P, and any
(epsilon, delta) of any number of steps follows from the distribution of the sum of losses. Here Q = N(0, sigma^2) and
P = sum_k w_k N(k, sigma^2), with w = Binomial(scans, q): `scans` is 1 where the unit itself is sampled and clipped, and
the number of a patient's records where records are (Charles et al. 2024, mixture of Gaussians). Both directions count:
"removal" is (P, Q), "addition" is (Q, P).

Rounding is only ever upwards: inside each grid cell the loss is split over both ends so that the mass under P and under
Q is kept (connect the dots, Doroshenko et al. 2022), mass beyond the grid goes to infinity, and a finer grid never gives
more. Written for speed (vectorised inverse, one FFT for all charges); dp_accounting is the check in the tests.

Units: losses are in nats, `grid` too. Arrays are float64.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

TAIL = 1e-15  # mass that a composition may push to infinity
REACH = 10.0  # standard deviations kept on each side; 8e-24 lies beyond
LEAST_NOISE = 0.02  # noise over the sensitivity of one unit; below it one step alone spans 1800 nats
FFT_ERROR = 2e-16  # per composed step, as mass; also charged to infinity


class Step(NamedTuple):
    """What one step is: noise over clip, inclusion probability, and records per unit that may be drawn at once."""

    noise_multiplier: float
    sample_rate: float
    scans: int


@dataclass(frozen=True)
class Losses:
    """Mass `probs[i]` at loss (first + i) * grid, and `infinity` at infinity; together 1."""

    grid: float
    first: int
    probs: np.ndarray
    infinity: float

    def values(self) -> np.ndarray:
        """The losses, in nats."""
        return (self.first + np.arange(len(self.probs))) * self.grid

    def delta(self, epsilons: np.ndarray) -> np.ndarray:
        """Hockey-stick divergence at each epsilon: infinity + E[1 - exp(epsilon - loss)] over greater losses."""
        mass, weight = self._tails()
        at = np.clip(np.floor(epsilons / self.grid).astype(np.int64) + 1 - self.first, 0, len(self.probs))
        # exp(epsilon) * sum(p exp(-loss)), with the exponentials kept relative to each tail's own start.
        relative = np.exp(np.minimum(epsilons - (self.first + at) * self.grid, 0.0))
        return np.minimum(1.0, self.infinity + np.maximum(0.0, mass[at] - relative * weight[at]))

    def epsilon(self, delta: float) -> float:
        """The least epsilon >= 0 whose divergence is at most delta; infinity where there is none."""
        if self.infinity > delta:
            return math.inf
        mass, weight = self._tails()
        at_grid = self.infinity + mass - weight  # divergence exactly at each grid value; the last one is past the end
        above = int(np.argmax(at_grid <= delta))  # first grid value that is good enough; the end always is
        value = (self.first + above) * self.grid
        if weight[above] == 0:
            return max(0.0, value)
        # Between the grid value before and this one, delta(e) = infinity + mass - exp(e - value) * weight.
        lead = (self.infinity + mass[above] - delta) / weight[above]
        return max(0.0, value + math.log(max(lead, math.exp(-self.grid))))

    def _tails(self) -> tuple[np.ndarray, np.ndarray]:
        """For each start i: the mass from i on, and sum_j>=i p_j exp(loss_i - loss_j); one past the end too."""
        mass = np.append(np.cumsum(self.probs[::-1])[::-1], 0.0)
        return mass, _discounted(self.probs, self.grid)


def _discounted(probs: np.ndarray, grid: float) -> np.ndarray:
    """sum_{j>=i} probs[j] exp(-(j - i) grid) for each i, and 0 past the end; in blocks, so that nothing overflows."""
    block = max(1, int(200 / grid))
    out = np.zeros(len(probs) + 1)
    for start in range((len(probs) - 1) // block * block, -1, -block):
        part = probs[start : start + block]
        fall = np.exp(-grid * np.arange(len(part) + 1))
        sums = np.cumsum((part * fall[:-1])[::-1])[::-1]
        out[start : start + len(part)] = (sums + out[start + len(part)] * fall[-1]) / fall[:-1]
    return out


@lru_cache(maxsize=8)  # megabytes each
def step_losses(step: Step, grid: float) -> tuple[Losses, Losses]:
    """(removal, addition) of one step on the grid."""
    counts, weights, lost = _draws(step)
    sigma = step.noise_multiplier
    low, high = _loss(np.array([-REACH * sigma, counts[-1] + REACH * sigma]), sigma, counts, weights)
    first, last = math.floor(low / grid), math.ceil(high / grid)
    edges = _where(np.arange(first, last + 1) * grid, sigma, counts, weights)
    cut = np.concatenate([[-np.inf], edges, [np.inf]])
    plain = _normal_mass(cut / sigma)
    mixed = sum(w * _normal_mass((cut - k) / sigma) for k, w in zip(counts, weights, strict=True))
    removal = _connect(first, grid, mixed, plain)
    addition = _connect(-last, grid, plain[::-1], mixed[::-1])
    return Losses(grid, first, removal.probs, removal.infinity + lost), addition


def compose(steps: Mapping[Step, int], grid: float) -> tuple[Losses, Losses]:
    """(removal, addition) of all steps together, each taken its number of times (at least one step in all)."""
    pairs = [(step_losses(step, grid), times) for step, times in steps.items()]
    return (_compose([(pair[0], n) for pair, n in pairs]), _compose([(pair[1], n) for pair, n in pairs]))


def width(steps: Mapping[Step, int]) -> float:
    """About how many nats the composed losses span; infinity where there is too little noise for any guarantee."""
    if any(step.noise_multiplier < LEAST_NOISE * step.scans for step in steps):
        return math.inf
    grid = max(1e-3, *(_greatest_loss(step) / 1e4 for step in steps))
    sides = zip(*(step_losses(step, grid) for step in steps), strict=True)
    return max(_window(list(zip(side, steps.values(), strict=True))).size for side in sides) * grid


class _Window(NamedTuple):
    """Grid indices, counted from the sum of all `first`, that hold all but TAIL of the composed mass."""

    low: int
    size: int


def _greatest_loss(step: Step) -> float:
    """The loss where the grid ends, roughly: all records drawn, and noise REACH deviations up."""
    counts, _, _ = _draws(step)
    top = float(counts[-1])
    return top * (top + 2 * REACH * step.noise_multiplier) / (2 * step.noise_multiplier**2)


def _draws(step: Step) -> tuple[np.ndarray, np.ndarray, float]:
    """How many records of one unit are drawn at once, with what probability; and the mass too rare to keep."""
    _, q, scans = step
    k = np.arange(scans + 1)
    if q == 1:
        return np.array([scans]), np.array([1.0]), 0.0
    from scipy.special import gammaln  # here, because SciPy takes a third of a second and 17 MB

    log_weights = gammaln(scans + 1) - gammaln(k + 1) - gammaln(scans - k + 1) + k * math.log(q)
    weights = np.exp(log_weights + (scans - k) * math.log1p(-q))
    kept = (weights > 1e-25) | (k <= 1)
    return k[kept], weights[kept], float(weights[~kept].sum())


def _loss(x: np.ndarray, sigma: float, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """log(P/Q) at x: log sum_k w_k exp((2 k x - k^2) / (2 sigma^2)); it grows with x."""
    terms = [math.log(w) + (2 * k * x - k * k) / (2 * sigma**2) for k, w in zip(counts, weights, strict=True)]
    return np.logaddexp.reduce(terms, axis=0)


def _where(loss: np.ndarray, sigma: float, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The x at which the loss is reached; -infinity for losses below every value it takes.

    The part that nothing was drawn is a constant and is moved to the other side; what remains is convex in x with a
    slope between 1/sigma^2 and counts[-1]/sigma^2, so Newton from the right converges in a few steps (one for k = 1).
    """
    if counts[0] == 0:
        floor = math.log(weights[0])
        counts, weights = counts[1:], weights[1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = loss - floor
            target = np.where(excess > 0, floor + excess + np.log(-np.expm1(-excess)), -np.inf)
    else:
        target = loss
    x = np.min([sigma**2 * (target - math.log(w)) / k + k / 2 for k, w in zip(counts, weights, strict=True)], axis=0)
    finite = np.isfinite(x)
    x, goal = x[finite], target[finite]
    for _ in range(50 if len(counts) > 1 else 0):
        terms = [math.log(w) + (2 * k * x - k * k) / (2 * sigma**2) for k, w in zip(counts, weights, strict=True)]
        height = np.logaddexp.reduce(terms, axis=0)
        slope = sum(k * np.exp(term - height) for k, term in zip(counts, terms, strict=True)) / sigma**2
        x = x - (height - goal) / slope
        if len(x) == 0 or np.max(np.abs(height - goal)) < 1e-12 * max(1.0, float(np.max(np.abs(goal)))):
            break
    out = np.full(len(loss), -np.inf)
    out[finite] = x
    return out


def _normal_mass(z: np.ndarray) -> np.ndarray:
    """Standard normal mass between neighbours of increasing z, each from the tail where it is exact."""
    low, high = z[:-1], z[1:]
    from scipy.special import ndtr

    return np.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))


def _connect(first: int, grid: float, p: np.ndarray, q: np.ndarray) -> Losses:
    """Mass on grid values from cell masses under P and Q; p[0] lies below the first value, p[-1] above the last."""
    edges = (first + np.arange(len(p) - 1)) * grid
    inside_p, inside_q = p[1:-1], q[1:-1]
    # Where exp(edge) would overflow Q's mass is zero too, and everything goes to the upper end.
    scaled_q = inside_q * np.exp(np.minimum(edges[:-1], 700.0))
    lower = np.clip((scaled_q - inside_p * math.exp(-grid)) / -math.expm1(-grid), 0.0, inside_p)
    probs = np.append(lower, 0.0)
    probs[1:] += inside_p - lower
    probs[0] += p[0]
    last = min(p[-1], q[-1] * math.exp(min(edges[-1], 700.0)))
    probs[-1] += last
    return Losses(grid, first, probs, float(p[-1] - last))


def _compose(parts: list[tuple[Losses, int]]) -> Losses:
    """The sum of independent losses: a product of spectra, on a window that holds all but TAIL of the mass."""
    window = _window(parts)
    from scipy.fft import irfft, next_fast_len, rfft

    length = next_fast_len(max(window.size, *(len(losses.probs) for losses, _ in parts)), real=True)
    spectrum = np.ones(length // 2 + 1, dtype=np.complex128)
    for losses, times in parts:
        spectrum *= _power(rfft(losses.probs, length), times)
    # The transform wraps around; what wraps into the window is part of TAIL.
    probs = np.roll(irfft(spectrum, length), -(window.low % length))[: window.size]
    finite = sum(times * math.log1p(-losses.infinity) for losses, times in parts)
    first = sum(times * losses.first for losses, times in parts) + window.low
    slack = TAIL + FFT_ERROR * sum(times for _, times in parts)
    return Losses(parts[0][0].grid, first, np.maximum(probs, 0.0), slack - math.expm1(finite))


def _power(spectrum: np.ndarray, times: int) -> np.ndarray:
    """spectrum ** times by squaring, which is several times faster than complex powers."""
    out = spectrum
    for bit in bin(times)[3:]:
        out = out * out
        if bit == "1":
            out *= spectrum
    return out


def _window(parts: list[tuple[Losses, int]]) -> _Window:
    """Chernoff bounds on the sum."""
    means, variances = zip(*(_moments(losses) for losses, _ in parts), strict=True)
    times = [number for _, number in parts]
    centre = float(np.dot(times, means))
    spread = math.sqrt(max(float(np.dot(times, variances)), 1e-6))
    high = min(sum(n * (len(losses.probs) - 1) for losses, n in parts), math.ceil(centre + _reach(parts, means, spread, 1)))
    low = max(0, math.floor(centre - _reach(parts, means, spread, -1)))
    return _Window(low, max(high - low + 1, 1))


def _reach(parts: list[tuple[Losses, int]], means: Sequence[float], spread: float, sign: int) -> float:
    """How far above (sign 1) or below (-1) its mean the sum stays but for half of TAIL, in grid cells.

    Any exponent gives a bound. The one that is best for a normal sum comes first; rare great losses want a smaller one.
    """
    room, least = math.log(2 / TAIL), math.inf
    order = math.sqrt(2 * room) / spread
    while True:
        growth = sum(times * _log_mgf(losses, sign * order, mean) for (losses, times), mean in zip(parts, means, strict=True))
        if (growth + room) / order >= least:
            return least
        least, order = (growth + room) / order, order / 2


def _moments(losses: Losses) -> tuple[float, float]:
    """Mean and variance of the finite part, in grid cells from its first."""
    index, total = np.arange(len(losses.probs)), losses.probs.sum()
    mean = float(index @ losses.probs / total)
    return mean, float((index - mean) ** 2 @ losses.probs / total)


def _log_mgf(losses: Losses, order: float, mean: float) -> float:
    """log E exp(order * (index - mean)), kept from overflowing."""
    exponent = order * (np.arange(len(losses.probs)) - mean)
    top = float(exponent[-1] if order > 0 else exponent[0])
    top = max(top - 600.0, 0.0)
    return math.log(float((losses.probs * np.exp(exponent - top)).sum())) + top
