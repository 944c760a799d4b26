"""Membership statistics against what normal scores are known to give, and verdicts on planted attacks."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from fedimaging.audits.membership import HitRate, auc, hit_rate, judge, unit_means
from fedimaging.errors import PrivacyError


def normals(shift: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(n) + shift, rng.standard_normal(n)


def test_the_area_is_scikit_learns_with_ties_and_its_interval_holds_the_truth() -> None:
    members, others = (np.round(scores, 1) for scores in normals(1.0))
    found = auc(members, others)
    truth = roc_auc_score(np.r_[np.ones(len(members)), np.zeros(len(others))], np.r_[members, others])
    assert found.value == pytest.approx(truth, abs=1e-12)
    exact = auc(*normals(1.0))
    assert exact.low < norm.cdf(1 / np.sqrt(2)) < exact.high
    assert exact.high - exact.low == pytest.approx(2 * 1.96 * 0.0055, rel=0.1)  # DeLong's deviation at 4000 and 4000


def test_a_perfect_order_has_an_interval_of_its_size() -> None:
    found = auc(np.arange(10.0) + 20, np.arange(10.0))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 10))


def test_the_rate_of_normal_scores_is_the_known_one() -> None:
    rate = hit_rate(*normals(2.0), fpr=0.01)
    assert rate is not None
    assert rate.false_alarms == 40
    found = rate.estimate()
    assert found.low < norm.cdf(2 - norm.ppf(0.99)) < found.high


def test_a_rate_below_one_non_member_is_not_given() -> None:
    assert hit_rate(np.ones(50), np.zeros(999), 0.001) is None
    assert hit_rate(np.ones(50), np.zeros(1000), 0.001) == HitRate(0.001, 50, 50, 0, 1000)  # all tie below the members


def gaussian_ceiling(mu: float) -> object:
    return lambda fpr: float(norm.cdf(mu - norm.ppf(1 - fpr))) if fpr < 1 else 1.0


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "consistent"), (1.0, "consistent"), (2.0, "violation")])
def test_a_planted_shift_is_judged_against_what_is_allowed(shift: float, verdict: str) -> None:
    rate = hit_rate(*normals(shift), fpr=0.01)
    assert rate is not None
    assert judge([rate], gaussian_ceiling(1.0), 0.99).verdict == verdict  # type: ignore[arg-type]


def test_too_few_patients_are_inconclusive_whatever_was_found() -> None:
    assert judge([HitRate(0.01, 30, 30, 1, 100)], gaussian_ceiling(4.0), 0.99).verdict == "inconclusive"  # type: ignore[arg-type]


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    for members in (np.zeros(0), np.array([np.nan])):
        with pytest.raises(PrivacyError, match="numbers of members"):
            auc(members, np.ones(3))


def test_a_unit_is_the_mean_of_its_rows() -> None:
    assert unit_means(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), 2).tolist() == [2.0, 5.0]
