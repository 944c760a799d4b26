from functools import partial

import numpy as np

from fedimaging.training import weighted
from fedimaging.training.bootstrap import interval


def mean_of(values: np.ndarray, patients: np.ndarray, resamples: int = 2000) -> tuple[float, float, int]:
    found = interval(float(values.mean()), partial(weighted.mean, values), patients, resamples=resamples, seed=0)
    return found.low, found.high, found.n_patients


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    low, high, count = mean_of(values, np.arange(400))
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.1 * half)
    assert count == 400


def test_copies_of_a_patient_s_scan_add_no_certainty() -> None:
    values = np.random.default_rng(1).standard_normal(100)
    assert mean_of(np.repeat(values, 4), np.repeat(np.arange(100).astype(str), 4))[2] == 100
    np.testing.assert_allclose(
        mean_of(np.repeat(values, 4), np.repeat(np.arange(100), 4))[:2], mean_of(values, np.arange(100))[:2], rtol=1e-9
    )


def test_deterministic_and_equal_in_any_number_of_pieces(monkeypatch: object) -> None:
    from fedimaging.training import bootstrap

    values, patients = np.arange(30.0), np.arange(30)
    whole = mean_of(values, patients, 100)
    assert mean_of(values, patients, 100) == whole
    monkeypatch.setattr(bootstrap, "_CELLS", 30 * 7)  # type: ignore[attr-defined]
    assert mean_of(values, patients, 100) == whole


def test_where_there_is_no_interval() -> None:
    one = interval(0.5, partial(weighted.mean, np.ones(3)), np.array(["a"] * 3), resamples=10, seed=0)
    assert (one.value, one.n_patients) == (0.5, 1)
    assert np.isnan([one.low, one.high]).all()
    none = interval(float("nan"), partial(weighted.mean, np.ones(0)), np.array([], str), resamples=10, seed=0)
    assert np.isnan([none.value, none.low, none.high]).all()
    assert none.n_patients == 0
    rarely = np.concatenate([[1.0], np.full(9, np.nan)])
    seldom = interval(1.0, lambda w: np.where(w[:, 0] > 3, 1.0, np.nan) + 0 * rarely[0], np.arange(10), resamples=50, seed=0)
    assert np.isnan([seldom.low, seldom.high]).all()
