"""Forecasts whose calibration is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from fedimaging.training.calibration import Calibration, Forecasts, calibration, forecasts_of
from fedimaging.training.recalibration import intercept_of, log_odds, p_value_of, slope_of


def drawn(patients: int, seed: int, *, temperature: float = 1.0, shift: float = 0.0, scans: int = 1) -> Forecasts:
    """Forecasts whose log-odds are `temperature` times the true ones without `shift`; scans of a patient share an outcome."""
    draw = np.random.default_rng(seed)
    odds = np.repeat(draw.normal(0, 2, patients), scans)
    luck = np.repeat(draw.random(patients), scans)
    happened = (luck < 1 / (1 + np.exp(-odds - shift))).astype(np.float64)
    return Forecasts(1 / (1 + np.exp(-temperature * odds)), happened, np.repeat(np.arange(patients), scans))


def measured(found: Forecasts) -> Calibration:
    return calibration(found, least=10, resamples=200, seed=0)


def p_value(found: Forecasts) -> float:
    return p_value_of(log_odds(found.probability), found.happened, found.patient, seed=0)


@pytest.mark.parametrize("patients", [1, 7, 60, 500])
@pytest.mark.parametrize("scans", [1, 3])
def test_the_parts_of_the_brier_score_add_up(patients: int, scans: int) -> None:
    found = drawn(patients, seed=1, temperature=2.0, scans=scans)
    known = measured(found)
    assert known.brier.value == pytest.approx(brier_score_loss(found.happened, found.probability))
    parts = known.reliability.value - known.resolution.value + known.uncertainty.value
    assert parts == pytest.approx(known.brier.value, abs=1e-12)
    assert known.uncertainty.value == pytest.approx(found.happened.mean() * (1 - found.happened.mean()))


def test_small_numbers_by_hand() -> None:
    found = Forecasts(np.array([0.1] * 10 + [0.7] * 10), np.array([0.0] * 8 + [1.0] * 12), np.arange(20))
    known = measured(found)
    bins = [(one.low, one.high, one.forecasts, one.happened.value) for one in known.bins]
    assert bins == [(0.1, 0.1, 10, 0.2), (0.7, 0.7, 10, 1.0)]
    assert known.ece.value == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    assert known.reliability.value == pytest.approx(0.5 * 0.01 + 0.5 * 0.09)
    assert known.resolution.value == pytest.approx(0.5 * (0.2 - 0.6) ** 2 + 0.5 * (1.0 - 0.6) ** 2)


def test_every_bin_holds_enough_patients_and_equal_forecasts_share_one() -> None:
    assert len(measured(drawn(35, seed=0)).bins) == 3
    assert len(measured(drawn(1000, seed=0)).bins) == 10
    assert len(measured(Forecasts(np.full(50, 0.3), np.arange(50) % 2.0, np.arange(50))).bins) == 1
    for one in measured(drawn(300, seed=0, scans=2)).bins:
        assert one.low <= one.forecast <= one.high
        assert one.happened.low <= one.happened.value <= one.happened.high
        assert one.happened.n_patients == 300


def test_slope_and_intercept_are_those_of_a_logistic_regression() -> None:
    found = drawn(400, seed=3, temperature=2.5, shift=0.5)
    x = log_odds(found.probability)
    fit = LogisticRegression(C=np.inf, tol=1e-10).fit(x[:, None], found.happened)
    assert slope_of(x, found.happened, found.patient).value == pytest.approx(float(fit.coef_[0, 0]), rel=1e-4)
    large = intercept_of(x, found.happened, found.patient).value
    assert (1 / (1 + np.exp(-x - large))).mean() == pytest.approx(found.happened.mean())


def test_planted_faults_are_found_with_their_size() -> None:
    hot = [drawn(600, seed, temperature=2.5) for seed in range(20)]
    rare = [drawn(600, seed, shift=1.0) for seed in range(20)]
    slopes = [slope_of(log_odds(one.probability), one.happened, one.patient) for one in hot]
    assert np.median([one.value for one in slopes]) == pytest.approx(1 / 2.5, rel=0.05)
    assert sum(one.low <= 1 / 2.5 <= one.high < 0.6 for one in slopes) >= 17
    intercepts = [intercept_of(log_odds(one.probability), one.happened, one.patient) for one in rare]
    assert np.median([one.value for one in intercepts]) == pytest.approx(1.0, rel=0.1)
    assert sum(0.5 < one.low <= 1.0 <= one.high for one in intercepts) >= 17
    for one in (*hot, *rare):
        assert p_value(one) == 0.001
        known = measured(one)
        assert known.ece.low > known.ece_by_chance


@pytest.mark.parametrize("scans", [1, 3])
@pytest.mark.parametrize("patients", [30, 200])
def test_no_false_alarms_beyond_the_level(patients: int, scans: int) -> None:
    found = [drawn(patients, seed, scans=scans) for seed in range(20)]
    assert sum(p_value(one) < 0.05 for one in found) <= 4  # of 20 at 5 %: more has a chance of 0.3 %
    covered = [slope_of(log_odds(one.probability), one.happened, one.patient) for one in found]
    assert sum(one.low <= 1 <= one.high for one in covered) >= 15


def test_a_fault_hides_less_the_more_patients_there_are() -> None:
    few, many = ([p_value(drawn(n, seed, temperature=2.0)) < 0.05 for seed in range(20)] for n in (25, 200))
    assert sum(few) < sum(many)
    assert sum(many) >= 18


def test_scans_of_a_patient_are_no_patients() -> None:
    one, often = drawn(150, seed=5, scans=1), drawn(150, seed=5, scans=6)
    for statistic in (slope_of, intercept_of):
        alone, together = (statistic(log_odds(f.probability), f.happened, f.patient) for f in (one, often))
        assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=1e-6)
    assert p_value(often) == pytest.approx(p_value(one), abs=1e-9)


def test_what_is_not_defined_is_not_a_number() -> None:
    separated = measured(Forecasts(np.linspace(0.2, 0.8, 40), (np.arange(40) >= 20).astype(float), np.arange(40)))
    assert np.isnan(separated.slope.value)
    one_class = measured(Forecasts(np.linspace(0.2, 0.8, 40), np.ones(40), np.arange(40)))
    assert np.isnan([one_class.slope.value, one_class.intercept.value]).all()
    assert one_class.p_value < 0.01  # and it is told that forecasts of 0.2 always happened
    constant = measured(Forecasts(np.full(40, 0.5), np.arange(40) % 2.0, np.arange(40)))
    assert constant.as_json()["slope"]["value"] is None
    assert constant.as_json()["p_value"] is None


def test_what_is_forecast_in_each_kind_of_task() -> None:
    scores = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    top = forecasts_of(scores, np.array([1, 2]), np.array([7, 8]), "multiclass")
    assert (top.probability.tolist(), top.happened.tolist()) == ([0.5, 0.6], [1.0, 0.0])
    labels = forecasts_of(scores, np.array([[0, 1, 0], [1, 1, 0]]), np.array([7, 8]), "multilabel")
    assert (labels.probability.tolist(), labels.patient.tolist()) == (scores.ravel().tolist(), [7, 7, 7, 8, 8, 8])
    two = forecasts_of(scores[:, :2], np.array([1, 0]), np.array([7, 8]), "binary")
    assert (two.probability.tolist(), two.happened.tolist()) == ([0.5, 0.3], [1.0, 0.0])
