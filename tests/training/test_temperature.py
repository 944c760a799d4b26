"""Drawn scores whose temperature is known."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fedimaging.privacy.tempering import SENSITIVITY, TEMPERATURES, tempering_totals
from fedimaging.training.temperature import added_curves, fit_temperature, tempered

Scans = tuple[np.ndarray, np.ndarray, np.ndarray]


def drawn(kind: str, patients: int, temperature: float, seed: int) -> Scans:
    """Scores (S, K) float32 of a model whose logits are those of the truth times `temperature`, labels, and patients."""
    draw = np.random.default_rng(seed)
    classes = 2 if kind == "binary" else 4
    logits = draw.normal(0, 2, (patients, classes))
    chance = tempered(_softmax(logits), kind, 1.0)
    if kind == "multilabel":
        sharp = 1 / (1 + np.exp(-temperature * logits))
        return sharp.astype(np.float32), (draw.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(int), np.arange(patients)
    labels = (chance.cumsum(1) < draw.random((patients, 1))).sum(1)
    return _softmax(temperature * logits).astype(np.float32), labels, np.arange(patients)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def summed(scans: Scans, kind: str) -> np.ndarray:
    return tempering_totals(*scans, kind).arrays["tempering"]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_found_and_lies_in_its_interval(kind: str, temperature: float) -> None:
    fits = [fit_temperature(summed(drawn(kind, 400, temperature, seed), kind), 0.0) for seed in range(20)]
    assert np.median([fit.value for fit in fits]) == pytest.approx(temperature, rel=0.08)
    assert sum(fit.low <= temperature <= fit.high for fit in fits) >= 17  # of 20 at 95 %: fewer has a chance of 0.3 %


def test_it_is_near_the_temperature_of_the_greatest_likelihood() -> None:
    scores, labels, patient = drawn("binary", 3000, 2.5, seed=1)

    def loss(inverse: float) -> float:
        return -float(np.log(tempered(scores, "binary", 1 / inverse)[np.arange(3000), labels]).mean())

    best = 1 / minimize_scalar(loss, bounds=(0.05, 5), method="bounded").x
    assert fit_temperature(summed((scores, labels, patient), "binary"), 0.0).value == pytest.approx(best, rel=0.08)


def test_hospitals_add_up_and_noise_widens_the_interval() -> None:
    scans = [drawn("binary", 500, 2.5, seed) for seed in range(4)]
    exact = fit_temperature(*added_curves([(summed(one, "binary"), 0.0) for one in scans]))
    std = 4.0 * SENSITIVITY  # of noise multiplier 4: epsilon 0.9 at delta 1e-5
    noise = np.random.default_rng(0).normal(0, std, (4, len(TEMPERATURES)))
    private = fit_temperature(*added_curves([(summed(one, "binary") + n, std) for one, n in zip(scans, noise, strict=True)]))
    assert added_curves([(noise[0], std)] * 4)[1] == pytest.approx(2 * std)
    assert private.value == pytest.approx(exact.value, rel=0.15)
    assert private.high / private.low > 1.2 * exact.high / exact.low
    assert private.low < 2.5 < private.high


def test_the_interval_holds_the_truth_as_often_as_it_says_also_under_noise() -> None:
    std, held = 4.0 * SENSITIVITY, 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, std, len(TEMPERATURES))
        fit = fit_temperature(summed(drawn("binary", 1500, 1.0, seed), "binary") + noise, std)
        held += fit.low <= 1.0 <= fit.high
    assert held >= 17


@pytest.mark.parametrize("sums", [np.zeros(9), np.full(9, np.nan), np.linspace(-1, 1, 9), np.linspace(5, 1, 9)])
def test_what_does_not_cross_zero_has_no_temperature(sums: np.ndarray) -> None:
    assert np.isnan(fit_temperature(sums, 0.0).value)


def test_of_few_patients_and_much_noise_nothing_is_known() -> None:
    found = [fit_temperature(summed(drawn("binary", 20, 1.0, seed), "binary"), 4.0 * SENSITIVITY) for seed in range(5)]
    assert np.isnan([one.value for one in found]).all()


def test_scores_at_a_temperature_keep_their_order() -> None:
    scores, _, _ = drawn("multiclass", 50, 1.0, seed=0)
    cool, warm = tempered(scores, "multiclass", 0.5), tempered(scores, "multiclass", 3.0)
    np.testing.assert_array_equal(warm.argsort(1), scores.argsort(1))
    np.testing.assert_allclose(warm.sum(1), 1.0)
    assert (warm.max(1) < scores.max(1)).all()
    assert (cool.max(1) > scores.max(1)).all()
    np.testing.assert_allclose(tempered(scores, "multiclass", 1.0), scores, atol=1e-6)
    np.testing.assert_allclose(tempered(np.array([[0.2, 0.8]]), "multilabel", 2.0), [[1 / 3, 2 / 3]])
