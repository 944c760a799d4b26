"""Slope and intercept of forecasts, and a test of both (Cox 1958; Miller, Hui and Tierney 1991): logistic regression of what
happened on the forecasts' log-odds. Variances are those of patients, not of scans (Liang and Zeger 1986)."""

import math

import numpy as np

from fedimaging.results import Interval

_TWO_SIDED = 1.959963984540054  # standard deviations in a 95 % interval
_LEAST = 1e-7  # forecasts of 0 and 1 would have no log-odds
_STEEPEST = 100.0  # a slope beyond it, up or down, is that of outcomes that forecasts separate: there is none
_MOST_STEPS = 50
_SINGULAR = 1e12  # condition of a matrix that has no inverse to speak of
_DRAWS = 999
_DRAWS_KEY = 1 << 66  # beside the bootstrap's stream of the same seed
_CELLS = 4_000_000  # outcomes held at a time: 32 MB


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Of forecasts (F,), held within 1e-7 of 0 and 1."""
    bounded = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.asarray(np.log(bounded) - np.log1p(-bounded))


def slope_of(x: np.ndarray, happened: np.ndarray, patient: np.ndarray) -> Interval:
    """Slope of the regression on log-odds x (F,), its intercept free; NaN where outcomes are all one, or separated."""
    return _coefficient(np.stack([x, np.ones_like(x)], axis=1), np.zeros_like(x), happened, patient)


def intercept_of(x: np.ndarray, happened: np.ndarray, patient: np.ndarray) -> Interval:
    """Intercept of the regression whose slope is held at 1; NaN where outcomes are all one."""
    return _coefficient(np.ones((len(x), 1)), x, happened, patient)


def p_value_of(x: np.ndarray, happened: np.ndarray, patient: np.ndarray, seed: int) -> float:
    """Score test of slope 1 and intercept 0; NaN where forecasts are all one, or near 0 and 1.

    The statistic is set against outcomes drawn as the forecasts say, so that its level holds for few patients too; all outcomes
    of a patient hang on one draw, the strongest dependence that scans of a patient can have, so that it holds for any.
    p = (1 + hits) / (1 + draws), never 0.
    """
    chance, design = _chance(x), np.stack([np.ones_like(x), x], axis=1)
    variance = _information(design, chance)
    if np.linalg.cond(variance) > _SINGULAR:
        return math.nan
    inverse = np.linalg.inv(variance)
    _, member = np.unique(patient, return_inverse=True)
    rng = np.random.Generator(np.random.Philox(key=_DRAWS_KEY + seed))

    def statistic(outcomes_RF: np.ndarray) -> np.ndarray:
        scores = (outcomes_RF - chance) @ design
        return np.asarray(np.einsum("rc,cd,rd->r", scores, inverse, scores))

    seen, hits, left = float(statistic(happened[None])[0]), 0, _DRAWS
    while left:
        count = min(left, max(1, _CELLS // len(x)))
        drawn = rng.random((count, int(member.max()) + 1))[:, member] < chance
        hits += int((statistic(drawn.astype(np.float64)) >= seen - 1e-12).sum())
        left -= count
    return (1 + hits) / (1 + _DRAWS)


def _coefficient(design: np.ndarray, offset: np.ndarray, happened: np.ndarray, patient: np.ndarray) -> Interval:
    """The first coefficient with its interval."""
    n_patients = len(np.unique(patient))
    unknown = Interval(math.nan, math.nan, math.nan, n_patients)
    beta = None if n_patients < 3 or happened.min() == happened.max() else _fitted(design, offset, happened)
    if beta is None:
        return unknown
    chance = _chance(design @ beta + offset)
    inverse = np.linalg.inv(_information(design, chance))
    sums = _by_patient((happened - chance)[:, None] * design, patient)
    variance = inverse @ (sums.T @ sums) @ inverse * (n_patients / (n_patients - 1))
    reach = _TWO_SIDED * math.sqrt(float(variance[0, 0]))
    return Interval(float(beta[0]), float(beta[0]) - reach, float(beta[0]) + reach, n_patients)


def _fitted(design: np.ndarray, offset: np.ndarray, happened: np.ndarray) -> np.ndarray | None:
    """Coefficients of greatest likelihood by Newton's method, a step halved until it is no step back; None where there are
    none: the outcomes are separated, or a column is the other's multiple."""
    beta = np.zeros(design.shape[1])
    for _ in range(_MOST_STEPS):
        chance = _chance(design @ beta + offset)
        information = _information(design, chance)
        if np.abs(beta).max() > _STEEPEST or np.linalg.cond(information) > _SINGULAR:
            return None
        step = np.linalg.solve(information, design.T @ (happened - chance))
        if np.abs(step).max() < 1e-8:
            return beta
        here = _log_likelihood(design @ beta + offset, happened)
        while _log_likelihood(design @ (beta + step) + offset, happened) < here - 1e-9 and np.abs(step).max() > 1e-12:
            step = step / 2
        beta = beta + step
    return None


def _chance(log_odds: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -500, 500))))


def _information(design: np.ndarray, chance: np.ndarray) -> np.ndarray:
    return np.asarray((design * (chance * (1 - chance))[:, None]).T @ design)


def _log_likelihood(log_odds: np.ndarray, happened: np.ndarray) -> float:
    return float((happened * log_odds - np.logaddexp(0, log_odds)).sum())


def _by_patient(parts: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Sums (P, C) of parts (F, C) over each patient's forecasts."""
    _, member = np.unique(patient, return_inverse=True)
    return np.stack([np.bincount(member, column) for column in parts.T], axis=1)
