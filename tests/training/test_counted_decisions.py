"""Thresholds, rates and net benefit from counts: without noise those of the scores, with noise intervals that hold the truth."""

import math

import numpy as np
import pytest

from fedimaging.privacy.released_metrics import EDGES, ranking_totals
from fedimaging.training.counted_decisions import BORDERS, counted_curve, counted_rates, counted_threshold
from fedimaging.training.decision_curve import decision_curve
from fedimaging.training.operating_point import rates_at


def people(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.4).astype(int)
    return 1 / (1 + np.exp(-(rng.normal(size=n) + 2.0 * truth - 1.0))), truth


def totals(scores: np.ndarray, truth: np.ndarray, std: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    counts = ranking_totals(np.stack([1 - scores, scores], 1), truth, np.arange(len(truth)), "binary").arrays["cells"]
    noise = np.random.default_rng(seed).normal(0, std, counts.shape) if std else 0.0
    return {"cells": (counts + noise).astype(np.float32), "noise_std": np.array(std, np.float32)}


AIMS = [("sensitivity", 0.9), ("sensitivity", 0.5), ("specificity", 0.9), ("specificity", 0.6)]


@pytest.mark.parametrize(("aim", "target"), AIMS)
def test_the_border_is_the_best_that_keeps_the_aim(aim: str, target: float) -> None:
    scores, truth = people()
    threshold = counted_threshold(totals(scores, truth), aim=aim, target=target)
    assert threshold is not None

    def rates(border: float) -> dict[str, float]:
        found = rates_at(scores, truth, np.arange(len(truth)), border, resamples=100, seed=0)
        return {name: one.value for name, one in found.items()}

    allowed = [border for border in BORDERS if rates(border)[aim] >= target]
    other = "specificity" if aim == "sensitivity" else "sensitivity"
    assert rates(threshold)[other] == max(rates(border)[other] for border in allowed)


def test_without_noise_the_rates_and_the_curve_are_those_of_the_scores() -> None:
    scores, truth = people()
    released, ids = totals(scores, truth), np.arange(len(truth))
    border = float(EDGES[8])
    counted, exact = counted_rates(released, border, resamples=200), rates_at(scores, truth, ids, border, resamples=200, seed=0)
    for name, one in exact.items():
        assert counted[name].value == pytest.approx(one.value)
        assert counted[name].high - counted[name].low == pytest.approx(one.high - one.low, rel=0.35)
    curve = counted_curve(released, resamples=100)
    assert curve is not None
    whole = decision_curve(scores, truth, ids, thresholds=curve.thresholds, resamples=100, seed=0)
    assert [one.value for one in curve.model] == pytest.approx([one.value for one in whole.model], abs=1e-6)
    assert curve.treat_all == pytest.approx(whole.treat_all)


def test_intervals_with_noise_hold_the_true_rate_about_as_often_as_they_say() -> None:
    scores, truth = people(200_000, seed=9)
    border = float(EDGES[6])
    population = rates_at(scores, truth, np.arange(len(truth)), border, resamples=100, seed=0)["sensitivity"].value
    inside = 0
    for seed in range(40):
        found = counted_rates(totals(*people(400, seed), std=4.0, seed=seed), border, resamples=200)["sensitivity"]
        inside += found.low <= population <= found.high
    assert inside >= 34  # of 40 at 95 %: fewer has a probability of 0.7 %


def test_what_is_lost_in_the_noise_is_not_told() -> None:
    scores, truth = people(20)
    lost = totals(scores, truth, std=30.0)
    assert counted_threshold(lost, aim="sensitivity", target=0.9) is None
    assert counted_curve(lost) is None
    assert all(math.isnan(one.value) for one in counted_rates(lost, 0.5).values())
