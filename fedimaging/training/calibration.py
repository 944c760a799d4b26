"""Whether probabilities mean what they say: reliability, calibration error, Brier score and its parts, slope and intercept.

Every kind of task is read as forecasts of yes or no: `binary` the probability of class 1; `multiclass` the probability of the
class that was chosen, and whether it was right (top-label); `multilabel` the probability of each label.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fedimaging.results import Interval
from fedimaging.training.bootstrap import drawn, interval_of
from fedimaging.training.recalibration import intercept_of, log_odds, p_value_of, slope_of

_MOST_BINS = 10
_CHANCE_DRAWS = 200
_CHANCE_KEY = 1 << 65  # beside the bootstrap's stream of the same seed


@dataclass(frozen=True)
class Forecasts:
    """`probability`, `happened` (F,) float64, and the `patient` (F,) of each; a scan gives one, or one a label."""

    probability: np.ndarray
    happened: np.ndarray
    patient: np.ndarray

    def only(self, keep: np.ndarray) -> "Forecasts":
        """Some of them, by mask or place."""
        return Forecasts(self.probability[keep], self.happened[keep], self.patient[keep])


@dataclass(frozen=True)
class ReliabilityBin:
    """Forecasts from `low` to `high`: their mean, and how often what they forecast happened."""

    low: float
    high: float
    forecast: float
    happened: Interval
    forecasts: int


@dataclass(frozen=True)
class Calibration:
    """How far forecasts can be believed; 95 % intervals over patients.

    `ece`: mean distance between forecast and frequency over bins of equal mass, plain, so above 0 also for perfect forecasts:
    `ece_by_chance` is what they would show on average; intervals are centred on their points. `brier` = `reliability`
    - `resolution` + `uncertainty` (Murphy 1973,
    with the within-bin terms of Stephenson, Coelho and Jolliffe 2008 in the resolution, so that they add up exactly).
    `slope`: below 1 the forecasts are too sure, above 1 not sure enough; `intercept` (calibration in the large, in log-odds, at
    slope 1): above 0 things happen more often than forecast. `p_value`: score test of slope 1 and intercept 0.
    """

    n_patients: int
    forecasts: int
    ece: Interval
    ece_by_chance: float
    brier: Interval
    reliability: Interval
    resolution: Interval
    uncertainty: Interval
    slope: Interval
    intercept: Interval
    p_value: float
    bins: tuple[ReliabilityBin, ...]

    def as_json(self) -> dict[str, Any]:
        """NaN becomes null."""
        tree = {name: value.as_json() for name, value in vars(self).items() if isinstance(value, Interval)}
        bins = [asdict(one) | {"happened": one.happened.as_json()} for one in self.bins]
        plain = {"n_patients": self.n_patients, "forecasts": self.forecasts, "ece_by_chance": self.ece_by_chance}
        return plain | tree | {"p_value": None if np.isnan(self.p_value) else self.p_value, "bins": bins}


def forecasts_of(scores: np.ndarray, labels: np.ndarray, patient: np.ndarray, kind: str) -> Forecasts:
    """From scores (S, K), labels (S,) or (S, L) for `multilabel`, and patients (S,)."""
    scores = np.asarray(scores, np.float64)
    if kind == "multilabel":
        return Forecasts(scores.reshape(-1), (labels.reshape(-1) > 0.5).astype(np.float64), np.repeat(patient, scores.shape[1]))
    if kind == "binary":
        return Forecasts(scores[:, 1], (labels == 1).astype(np.float64), patient)
    return Forecasts(scores.max(1), (scores.argmax(1) == labels).astype(np.float64), patient)


def calibration(found: Forecasts, *, least: int, resamples: int, seed: int) -> Calibration:
    """Of at least one forecast; all must be finite. Bins hold equally many forecasts, and patients for at least `least`; at
    most ten bins."""
    patients = len(np.unique(found.patient))
    bin_of, edges = _bins(found.probability, max(1, min(_MOST_BINS, patients // least)))
    onehot = (bin_of[:, None] == np.arange(len(edges))).astype(np.float64)
    points = _statistics(found, onehot, np.ones((1, len(bin_of))))[0]
    known = _intervals(points, found, onehot, resamples, seed)
    ece, brier, reliability, resolution, uncertainty, *happened = known
    bins = tuple(
        ReliabilityBin(low, high, float(found.probability[bin_of == b].mean()), happened[b], int(onehot[:, b].sum()))
        for b, (low, high) in enumerate(edges)
    )
    x = log_odds(found.probability)
    return Calibration(
        patients, len(bin_of), ece, _by_chance(found, onehot, seed), brier, reliability, resolution, uncertainty,
        slope_of(x, found.happened, found.patient), intercept_of(x, found.happened, found.patient),
        p_value_of(x, found.happened, found.patient, seed), bins,
    )


def _intervals(points: np.ndarray, found: Forecasts, onehot_FB: np.ndarray, resamples: int, seed: int) -> list[Interval]:
    """Of all statistics from the same resamples. They are centred on their points: chance can only raise a distance, resampling
    adds chance once more, and an interval would lie above its own point."""
    patients = len(np.unique(found.patient))
    if patients < 2:
        return [Interval(float(point), float("nan"), float("nan"), patients) for point in points]
    values_RV = drawn(lambda weights: _statistics(found, onehot_FB, weights), found.patient, resamples=resamples, seed=seed)
    known = [interval_of(p, values - np.nanmean(values) + p, patients) for p, values in zip(points, values_RV.T, strict=True)]
    return [replace(one, low=max(one.low, min(0.0, one.value)), high=min(one.high, 1.0)) for one in known]


def _bins(probability: np.ndarray, count: int) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """(bin of each forecast (F,), (lowest, highest) forecast of each bin). Equal forecasts share a bin, so that there may be
    fewer."""
    ranks = np.searchsorted(np.sort(probability), probability, side="left")
    _, bin_of = np.unique(ranks * count // max(1, len(probability)), return_inverse=True)
    inside = [probability[bin_of == b] for b in range(int(bin_of.max()) + 1)]
    return bin_of, [(float(one.min()), float(one.max())) for one in inside]


def _statistics(found: Forecasts, onehot_FB: np.ndarray, weights_RF: np.ndarray) -> np.ndarray:
    """(R, 5 + B): ECE, Brier score, reliability, resolution, uncertainty, and the frequency in each bin."""
    p, y = found.probability, found.happened
    total = weights_RF.sum(1)
    size, of_p, of_y = weights_RF @ onehot_FB, weights_RF @ (onehot_FB * p[:, None]), weights_RF @ (onehot_FB * y[:, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_p, mean_y = np.where(size > 0, of_p / size, 0.0), np.where(size > 0, of_y / size, np.nan)
        rate = of_y.sum(1) / total
        ece = np.abs(of_p - of_y).sum(1) / total
        brier = weights_RF @ (p - y) ** 2 / total
        seen_y = np.nan_to_num(mean_y)
        reliability = (size * (mean_p - seen_y) ** 2).sum(1) / total
        between = (size * (seen_y - rate[:, None]) ** 2).sum(1) / total
        within = (weights_RF @ p**2 - (size * mean_p**2).sum(1)) / total
        together = (weights_RF @ (p * y) - (size * mean_p * seen_y).sum(1)) / total
    resolution = between - within + 2 * together
    return np.concatenate([np.stack([ece, brier, reliability, resolution, rate * (1 - rate)], axis=1), mean_y], axis=1)


def _by_chance(found: Forecasts, onehot_FB: np.ndarray, seed: int) -> float:
    """Mean ECE of perfect forecasts: of outcomes drawn with the forecast probabilities (Bröcker and Smith 2007)."""
    rng = np.random.Generator(np.random.Philox(key=_CHANCE_KEY + seed))
    p = found.probability
    total = 0.0
    for _ in range(_CHANCE_DRAWS):
        drawn = (rng.random(len(p)) < p).astype(np.float64)
        total += float(np.abs((p - drawn) @ onehot_FB).sum()) / len(p)
    return total / _CHANCE_DRAWS
