"""Epsilon of everything that was charged: PLD is the figure of record, RDP the check that must lie above it.

All figures are for adding or removing one unit, Poisson sampling, and the composition of all charges given, whatever
rounds, restarts and studies they come from. They are upper bounds: rounding only ever goes up (`pld.py`).

Charges of one unit give epsilon for that unit. Record-level and patient-level charges together give epsilon for the
patient, by group arithmetic, where every record-level charge says how many scans a patient has at most; otherwise they
are refused.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from fedimaging import lean_imports
from fedimaging.errors import PrivacyError, bad_value, unknown_name
from fedimaging.privacy import pld
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.pld import Step

ACCOUNTANT = "PLD (connect the dots, grid 1e-4)"
GRID = 1e-4  # nats; of record
QUICK_GRID = 1e-3  # also an upper bound, ten times faster, up to 0.01 higher over 14,000 steps
MOST_CELLS = 1e6  # of a composed distribution; epsilon 20 needs 600,000 on the grid of record
LEAST_DELTA = 1e-10  # FFT rounding stays a hundred times below it
_TRIES = 30  # of calibration; three are enough but for a target near the step of the grid
CLOSENESS = 5e-4  # calibrated epsilon lies within this fraction under its target

Steps = tuple[tuple[Step, int], ...]


def epsilon(charges: Sequence[Charge], delta: float) -> float:
    """(epsilon, delta) of all charges together, by PLD; 0 for none, infinity where a charge has no noise to speak of.

    Errors: PrivacyError for a delta outside [1e-10, 1), or for units that cannot be added up.
    """
    return epsilon_of_steps(steps_of(charges), delta)


def epsilon_rdp(charges: Sequence[Charge], delta: float) -> float:
    """The same by Renyi accounting (dp-accounting's curves): simpler, looser, and never below the truth."""
    _check_delta(delta)
    return _epsilon_rdp(steps_of(charges), delta)


def epsilon_prv(charges: Sequence[Charge], delta: float) -> float:
    """The same by Opacus' PRV accountant, its upper end at an error of 0.01: a second opinion. Imports Opacus."""
    from opacus.accountants import PRVAccountant

    _check_delta(delta)
    accountant = PRVAccountant()
    for step, times in steps_of(charges):
        if step.scans > 1:
            raise PrivacyError("accountant='prv' knows no group arithmetic; use 'pld' for charges of mixed units.")
        accountant.history.append((step.noise_multiplier, step.sample_rate, times))
    if not accountant.history:
        return 0.0
    # Opacus takes log(0) for q = 1 and rightly uses the -infinity; its search for a window warns at the last order.
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        return float(accountant.get_epsilon(delta))


ACCOUNTANTS: dict[str, Callable[[Sequence[Charge], float], float]] = {
    "pld": epsilon,
    "rdp": epsilon_rdp,
    "prv": epsilon_prv,
}


def epsilon_by(accountant: str, charges: Sequence[Charge], delta: float) -> float:
    """Epsilon by the accountant of that name. Error: PrivacyError for an unknown one, and for "gdp"."""
    if accountant == "gdp":
        raise PrivacyError(
            "accountant='gdp' is a central-limit estimate, not a bound: it gave 1.96 where the truth is 4.52; "
            "use 'pld', or 'rdp' as the check above it."
        )
    if accountant not in ACCOUNTANTS:
        raise PrivacyError(unknown_name("accountant", accountant, ACCOUNTANTS))
    return ACCOUNTANTS[accountant](charges, delta)


def delta_for(charges: Sequence[Charge], epsilon: float) -> float:
    """The least delta at which all charges together are (epsilon, delta)-private, by PLD; at least about 1e-13."""
    if not 0 <= epsilon < math.inf:
        raise PrivacyError(bad_value("epsilon", epsilon, "must be finite and at least 0"))
    return float(deltas(charges, np.array([epsilon]))[0])


def deltas(charges: Sequence[Charge], epsilons: np.ndarray) -> np.ndarray:
    """`delta_for` at many epsilons at once."""
    return deltas_of_steps(steps_of(charges), epsilons)


def deltas_of_steps(steps: Steps, epsilons: np.ndarray) -> np.ndarray:
    """The same of what `steps_of` or `patient_steps_of` gave."""
    if not steps:
        return np.zeros(len(epsilons))
    grid = _affordable(steps, GRID)
    if math.isinf(grid):
        return np.ones(len(epsilons))
    removal, addition = pld.compose(dict(steps), grid)
    return np.maximum(removal.delta(epsilons), addition.delta(epsilons))


def bound_for(budget: Budget) -> Callable[[Sequence[Charge], float], float]:
    """For `Ledger.reserve`: an upper bound of epsilon, computed only as finely as this budget needs to decide.

    A coarse grid gives a bound in milliseconds; the grid of record is used only where the coarse bound is above the
    budget. The decision is the one that `epsilon` would give.
    """

    def bound(charges: Sequence[Charge], delta: float) -> float:
        _check_delta(delta)
        steps = steps_of(charges)
        quick = _epsilon(steps, delta, QUICK_GRID)
        return quick if quick <= budget.epsilon else _epsilon(steps, delta, GRID)

    return bound


@lru_cache(maxsize=4096)
def calibrate(target_epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The noise multiplier for `steps` steps at this sample rate to end at (target_epsilon, delta).

    Guarantee: epsilon by PLD is at most the target, and within 0.05 % of it (a target near the grid's own step may end
    further below). Kept in memory by its arguments. Errors: PrivacyError for a target outside (0, 1000], which no noise
    multiplier worth the name reaches, and for one that is too small for the grid.
    """
    _check_delta(delta)
    if not 0 < target_epsilon <= 1000:
        raise PrivacyError(bad_value("target_epsilon", target_epsilon, "must be above 0 and at most 1000"))
    Charge(1.0, sample_rate, steps, "patient")  # refuses what cannot be accounted for
    if steps == 0:
        raise PrivacyError(bad_value("steps", steps, "must be at least 1 to calibrate noise for"))

    quick_grid = max(QUICK_GRID, target_epsilon / 4000)
    start, excess = 1.0, 0.0  # how much higher the quick grid's epsilon is than that of record, near the answer
    enough = 0.0  # the least sigma seen that keeps to the target
    for _ in range(_TRIES):

        def quick(sigma: float, excess: float = excess) -> float:
            return _epsilon(((Step(sigma, sample_rate, 1), steps),), delta, quick_grid) - excess

        sigma = _least_sigma(quick, target_epsilon, start, 2.0 if start == 1.0 else 1.01)
        reached = _epsilon(((Step(sigma, sample_rate, 1), steps),), delta, GRID)
        if target_epsilon * (1 - CLOSENESS) <= reached <= target_epsilon:
            return sigma
        if reached <= target_epsilon:
            enough = min(sigma, enough or sigma)
        start, excess = sigma, quick(sigma) + excess - reached
    if enough:
        return enough
    rule = f"cannot be reached in {steps} steps at delta={delta:g}"
    raise PrivacyError(bad_value("target_epsilon", target_epsilon, rule, "raise it; 0.01 is about the least that makes sense"))


def steps_of(charges: Sequence[Charge]) -> Steps:
    """Charges with equal steps added up, in a fixed order; read at patient level where units are mixed.

    Error: PrivacyError where patient-level and record-level charges meet and scans per patient are not known.
    """
    mixed = len({charge.unit for charge in charges if charge.steps}) > 1
    return patient_steps_of(charges) if mixed else _added_up((charge, 1) for charge in charges)


def patient_steps_of(charges: Sequence[Charge]) -> Steps:
    """As `steps_of`, always at patient level."""
    return _added_up((charge, _scans(charge)) for charge in charges)


def epsilon_of_steps(steps: Steps, delta: float) -> float:
    """Epsilon by PLD of what `steps_of` or `patient_steps_of` gave."""
    _check_delta(delta)
    return _epsilon(steps, delta, GRID)


def _added_up(charges: Iterable[tuple[Charge, int]]) -> Steps:
    """(charge, records per unit) pairs as steps and how many of each."""
    total: dict[Step, int] = {}
    for charge, scans in charges:
        if charge.steps:
            step = Step(charge.noise_multiplier, charge.sample_rate, scans)
            total[step] = total.get(step, 0) + charge.steps
    return tuple(sorted(total.items()))


def _scans(charge: Charge) -> int:
    """How many sampled units of this charge one patient may own."""
    if charge.unit == "patient":
        return 1
    if charge.scans_per_patient is None:
        raise PrivacyError(
            "record-level charges cannot be read at patient level without an upper bound on scans per patient: keep "
            "record-level and patient-level studies in separate ledgers."
        )
    return charge.scans_per_patient


@lru_cache(maxsize=8192)
def _epsilon(steps: Steps, delta: float, grid: float) -> float:
    """Epsilon by PLD on this grid, or on a coarser one where the losses span too many cells."""
    if not steps:
        return 0.0
    grid = _affordable(steps, grid)
    if math.isinf(grid):
        return math.inf
    removal, addition = pld.compose(dict(steps), grid)
    return max(removal.epsilon(delta), addition.epsilon(delta))


def _affordable(steps: Steps, grid: float) -> float:
    """The first of grid, 10 grid, ... that needs at most MOST_CELLS cells; infinity where none up to 0.1 does."""
    span = pld.width(dict(steps))
    while span / grid > MOST_CELLS:
        grid *= 10
        if grid > 0.1:
            return math.inf
    return grid


@lru_cache(maxsize=8192)
def _epsilon_rdp(steps: Steps, delta: float) -> float:
    lean_imports.install()
    from dp_accounting.rdp import rdp_privacy_accountant

    if not steps:
        return 0.0
    orders = rdp_privacy_accountant.DEFAULT_RDP_ORDERS
    total = sum(times * _rdp_curve(step) for step, times in steps)
    return float(rdp_privacy_accountant.compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=1024)
def _rdp_curve(step: Step) -> np.ndarray:
    """Renyi divergence of one step at each order; a unit of several records is taken to send all if it sends one."""
    lean_imports.install()
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    if step.noise_multiplier == 0:
        return np.array([math.inf])
    any_drawn = -math.expm1(step.scans * math.log1p(-step.sample_rate)) if step.sample_rate < 1 else 1.0
    accountant, log = RdpAccountant(), logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of each order that it leaves out; the others still give a bound
    try:
        accountant.compose(PoissonSampledDpEvent(any_drawn, GaussianDpEvent(step.noise_multiplier / step.scans)))
    finally:
        log.setLevel(level)
    return np.asarray(accountant.rdp)


def _least_sigma(epsilon_at: Callable[[float], float], target: float, start: float, factor: float) -> float:
    """The sigma whose epsilon lies within CLOSENESS under the target; epsilon falls with sigma.

    Walks by `factor` from `start` until the target is bracketed, then takes secants on logarithms, where the curve is
    nearly straight; a secant that leaves the bracket is replaced by its middle.
    """
    aim = math.log(target * (1 - CLOSENESS / 2))

    def gap(log_sigma: float) -> float:
        return min(math.log(max(epsilon_at(math.exp(log_sigma)), 1e-300)) - aim, 50.0)

    here, gap_here = math.log(start), gap(math.log(start))
    stride = math.log(factor) if gap_here > 0 else -math.log(factor)
    before, gap_before = here, gap_here
    while (gap_here > 0) == (stride > 0):
        before, gap_before, here, gap_here = here, gap_here, here + stride, gap(here + stride)
    low, high = min(before, here), max(before, here)
    while abs(gap_here) > CLOSENESS * 0.45 and high - low > 1e-9:  # on its grid, epsilon may jump past the target
        rise = gap_here - gap_before
        guess = here - gap_here * (here - before) / rise if rise else high
        guess = guess if low < guess < high else (low + high) / 2
        before, gap_before, here, gap_here = here, gap_here, guess, gap(guess)
        low, high = (here, high) if gap_here > 0 else (low, here)
    return math.exp(here if abs(gap_here) <= CLOSENESS * 0.45 else high)


def _check_delta(delta: float) -> None:
    if not LEAST_DELTA <= delta < 1:
        raise PrivacyError(bad_value("delta", delta, f"must be at least {LEAST_DELTA:g} and below 1", "use one below 1/patients"))
