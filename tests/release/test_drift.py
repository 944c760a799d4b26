"""Drift against aggregates: planted drifts are found with their size, and without any there is no more alarm than stated."""

import numpy as np
import pytest
from scipy.stats import binom

from fedimaging.release.cells import histogram
from fedimaging.release.drift import (
    ACT_RATE,
    WATCH_RATE,
    Drift,
    histogram_drift,
    holm,
    judged,
    median_of,
    performance_drift,
    stability_index,
    worst,
)
from fedimaging.results import Interval

EDGES = np.linspace(0, 1, 21)


def patients_with_scans(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.repeat(np.arange(count), rng.integers(1, 4, count))


def values_of(rng: np.random.Generator, patients: np.ndarray, mean: float = 0.5, spread: float = 0.1) -> np.ndarray:
    """Scans of one patient are nearly alike."""
    own = rng.normal(mean, spread, patients.max() + 1)
    return own[patients] + rng.normal(0, 0.02, len(patients))


def reference(rng: np.random.Generator, count: int) -> dict:
    patients = patients_with_scans(rng, count)
    made = histogram(values_of(rng, patients), patients, EDGES, 10)
    assert made is not None
    return made


@pytest.mark.parametrize(("n_reference", "n_new"), [(60, 25), (200, 80), (1000, 40)])
def test_without_drift_alarms_are_no_more_than_stated(n_reference: int, n_new: int) -> None:
    """200 looks at 3 features each; more alarms than the upper 0.1 % of the stated rate would be chance once in a thousand."""
    watch = act = 0
    for seed in range(200):
        rng = np.random.default_rng([seed, n_reference])
        found = []
        for name in "abc":
            kept, patients = reference(rng, n_reference), patients_with_scans(rng, n_new)
            values = values_of(rng, patients)
            found.append(histogram_drift("input", name, None, kept, n_reference, values, patients, draws=1000, seed=seed))
        level = worst([one.level for one in judged(found)])
        watch, act = watch + (level != "none"), act + (level == "act")
    assert watch <= binom.ppf(0.999, 200, WATCH_RATE)
    assert act <= binom.ppf(0.999, 200, ACT_RATE)


@pytest.mark.parametrize(("planted", "level"), [(0.15, "act"), (0.06, "watch")])
def test_a_planted_shift_is_found_with_its_size(planted: float, level: str) -> None:
    rng = np.random.default_rng(0)
    kept, patients = reference(rng, 400), patients_with_scans(rng, 120)
    found = histogram_drift("input", "mean", None, kept, 400, values_of(rng, patients, 0.5 + planted), patients)
    (one,) = judged([found])
    assert one.level in ((level, "act") if level == "watch" else (level,))
    assert one.after - one.before == pytest.approx(planted, abs=0.02)
    assert one.n_patients == 120


def test_scans_do_not_count_as_patients() -> None:
    """Ten patients with 30 scans each are ten: what they happen to be is no drift."""
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        kept, patients = reference(rng, 300), np.repeat(np.arange(10), 30)
        found = histogram_drift("input", "a", None, kept, 300, values_of(rng, patients), patients, draws=1000, seed=seed)
        alarms += found.p_value < 0.05
    assert alarms <= binom.ppf(0.999, 40, 0.05)


def test_the_median_of_a_histogram_by_hand() -> None:
    assert median_of(np.array([0.0, 0.4, 0.5, 1.0]), np.array([0.3, 0.4, 0.3])) == pytest.approx(0.45)


def test_stability_index_by_hand() -> None:
    assert stability_index(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
    by_hand = (0.25 - 0.5) * np.log(0.5) + (0.75 - 0.5) * np.log(1.5)
    assert stability_index(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(by_hand)


def one(p_value: float, *, psi: float = 1.0, group: tuple[str, str] | None = None, what: str = "input") -> Drift:
    return Drift(what, "x", group, 0.0, 0.0, psi, p_value, 50)


def test_holm_by_hand() -> None:
    assert holm([one(0.04), one(0.01), one(0.03)]) == pytest.approx([0.06, 0.03, 0.06])


def test_levels_need_more_than_chance_and_to_act_it_must_matter() -> None:
    assert [each.level for each in judged([one(0.004), one(0.9)])] == ["act", "none"]
    assert [each.level for each in judged([one(0.004, psi=0.1), one(0.9)])] == ["watch", "none"]
    assert [each.level for each in judged([one(0.004, psi=0.1, what="performance"), one(0.9)])] == ["act", "none"]
    assert judged([one(0.02)])[0].adjusted == pytest.approx(0.02)
    assert judged([one(0.02), one(0.5, group=("sex", "F"))])[0].adjusted == pytest.approx(0.04)
    assert worst(["none", "act", "watch"]) == "act"
    assert worst([]) == "none"


def test_performance_is_compared_by_both_intervals() -> None:
    kept = {"value": 0.90, "low": 0.8608, "high": 0.9392}  # standard error 0.02
    found = performance_drift("auroc", None, kept, Interval(0.83, 0.7908, 0.8692, 40), lower_is_better=False)
    assert found is not None
    assert found.p_value == pytest.approx(0.00667, abs=2e-4)  # 0.07 is 2.475 standard errors of the difference
    (alone,) = judged([found])
    assert alone.least == pytest.approx(1.645 * 0.0283, abs=1e-3)
    assert alone.interval == (0.7908, 0.8692)
    better = performance_drift("auroc", None, kept, Interval(0.95, 0.93, 0.97, 40), lower_is_better=False)
    assert better is not None
    assert better.p_value > 0.9
    brier = performance_drift("brier", None, {"value": 0.1, "low": 0.09, "high": 0.11}, Interval(0.2, 0.18, 0.22, 40),
                              lower_is_better=True)
    assert brier is not None
    assert brier.p_value < 1e-6
    nothing = Interval(float("nan"), float("nan"), float("nan"), 3)
    assert performance_drift("auroc", None, kept, nothing, lower_is_better=False) is None
