"""Hospital-level privacy: what one hospital can move, what noise lies on it, and what drop-outs change (nothing)."""

import numpy as np
import pytest
from pydantic import ValidationError

from fedimaging.aggregation.mean import StreamingMean, l2_norm
from fedimaging.aggregation.site_privacy import PrivateMean, SitePrivacySpec
from fedimaging.errors import FedimagingError

SPEC = SitePrivacySpec(clip_norm=0.5, noise_multiplier=2.0)


def quiet(vector: np.ndarray, std: float) -> None:
    """No noise, to see what lies under it."""


def mean_of(updates: list[np.ndarray], asked: int, spec: SitePrivacySpec = SPEC) -> np.ndarray:
    mean = PrivateMean(spec, asked, quiet)
    for update in updates:
        mean.add(update)
    return mean.result()


def test_each_update_is_clipped_and_the_sum_divided_by_all_that_were_asked() -> None:
    found = mean_of([np.array([3.0, 4.0]), np.array([0.0, 0.1])], asked=4)
    assert found.tolist() == pytest.approx([0.3 / 4, 0.5 / 4])


def test_a_wide_clip_is_the_plain_mean() -> None:
    updates = [np.random.default_rng(i).normal(size=50).astype(np.float32) for i in range(3)]
    plain = StreamingMean()
    for update in updates:
        plain.add(update)
    np.testing.assert_allclose(mean_of(updates, 3, SitePrivacySpec(clip_norm=1e6, noise_multiplier=1.0)), plain.result())


@pytest.mark.parametrize("extreme", [np.zeros(20), np.full(20, 1e30), np.full(20, 3e38, np.float32), np.eye(1, 20)[0] * 1e-40])
def test_no_hospital_moves_the_sum_by_more_than_the_clip(extreme: np.ndarray) -> None:
    others = [np.random.default_rng(i).normal(size=20) * 10**i for i in range(4)]
    moved = (mean_of([*others, extreme], 5) - mean_of([*others, np.zeros(20)], 5)) * 5
    assert l2_norm(moved) <= 0.5 * (1 + 1e-12)
    assert np.isfinite(moved).all()


def test_a_hospital_that_does_not_answer_is_one_of_zeros() -> None:
    updates = [np.random.default_rng(i).normal(size=20) for i in range(3)]
    np.testing.assert_array_equal(mean_of(updates, 4), mean_of([*updates, np.zeros(20)], 4))


def test_noise_of_the_mean_has_the_stated_size_whoever_answers() -> None:
    drawn = np.random.default_rng(0)

    def gaussian(vector: np.ndarray, std: float) -> None:
        vector += std * drawn.standard_normal(len(vector))

    for answering in (1, 5):
        mean = PrivateMean(SPEC, 5, gaussian)
        for _ in range(answering):
            mean.add(np.zeros(100_000))
        assert mean.result().std() == pytest.approx(2.0 * 0.5 / 5, rel=0.01)


def test_a_mean_is_released_once() -> None:
    mean = PrivateMean(SPEC, 2, quiet)
    with pytest.raises(FedimagingError, match="no update was added"):
        mean.result()
    mean.add(np.ones(3))
    mean.result()
    with pytest.raises(FedimagingError, match="released already"):
        mean.result()


@pytest.mark.parametrize(
    ("update", "weight", "said"),
    [(np.ones(2), 2.0, "weight=2.0 must be 1"), (np.array([1.0, np.nan]), 1.0, "NaN"), (np.array([np.inf, 1]), 1.0, "NaN"),
     (np.ones(3), 1.0, "shape")],
)  # fmt: skip
def test_what_would_change_the_sensitivity_is_refused(update: np.ndarray, weight: float, said: str) -> None:
    mean = PrivateMean(SPEC, 5, quiet)
    mean.add(np.zeros(2))
    with pytest.raises(FedimagingError, match=said):
        mean.add(update, weight)
    assert mean.count == 1


def test_more_updates_than_asked_for_are_refused() -> None:
    mean = PrivateMean(SPEC, 1, quiet)
    mean.add(np.zeros(2))
    with pytest.raises(FedimagingError, match="more than the 1 updates"):
        mean.add(np.zeros(2))
    with pytest.raises(FedimagingError, match="asked=0"):
        PrivateMean(SPEC, 0, quiet)


@pytest.mark.parametrize("keys", [
    {"clip_norm": 0}, {"noise_multiplier": 0}, {"delta": 0}, {"delta": 1}, {"clip_norm": float("inf")}, {"adaptive": True},
], ids=str)  # fmt: skip
def test_a_spec_that_protects_nobody_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SitePrivacySpec.model_validate({"clip_norm": 1.0, "noise_multiplier": 1.0} | keys)
