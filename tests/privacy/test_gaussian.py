import pytest

from fedimaging.errors import PrivacyError
from fedimaging.privacy.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu


def test_no_shift_is_free_and_small_ones_cost_nothing_at_a_generous_delta() -> None:
    assert gaussian_delta(0, 1.0) == gaussian_epsilon(0, 1e-5) == gaussian_epsilon(0.01, 0.1) == 0.0


def test_there_and_back() -> None:
    assert gaussian_mu(gaussian_epsilon(1.5, 1e-6), 1e-6) == pytest.approx(1.5, rel=1e-8)


@pytest.mark.parametrize("arguments", [(-1.0, 1e-5), (float("inf"), 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_nonsense_is_refused(arguments: tuple[float, float]) -> None:
    with pytest.raises(PrivacyError):
        gaussian_epsilon(*arguments)
    with pytest.raises(PrivacyError):
        gaussian_mu(*arguments)
