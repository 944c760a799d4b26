import json
from pathlib import Path

import pytest

from fedimaging.audits.bounds import one_run_bound, rate_at_most, two_world_bounds
from fedimaging.privacy.gaussian import gaussian_epsilon

VECTORS = json.loads((Path(__file__).parents[1] / "privacy" / "accountant_vectors.json").read_text())


@pytest.mark.parametrize("row", VECTORS["two_world_audit"]["rows"], ids=lambda row: f"{row['n_per_world']}-{row['fn']}")
def test_two_worlds(row: dict) -> None:
    epsilon, mu = two_world_bounds(row["fp"], row["fn"], row["n_per_world"], row["delta"], row["conf"])
    assert epsilon == pytest.approx(row["eps_lb"], abs=1e-3)
    assert mu == pytest.approx(row["mu_lb"], abs=1e-3)
    assert gaussian_epsilon(mu, row["delta"]) == pytest.approx(row["eps_lb_gdp"], abs=1e-3)


@pytest.mark.parametrize("row", VECTORS["one_run_audit"]["rows"], ids=lambda row: f"{row['r']}-{row['v']}")
def test_one_run(row: dict) -> None:
    bound = one_run_bound(row["m"], row["r"], row["v"], row["delta"], 1 - row["p"])
    assert bound == pytest.approx(row["eps_lb"], abs=1e-3)


def test_nothing_right_proves_nothing() -> None:
    assert rate_at_most(10, 10, 0.95) == 1.0
    assert two_world_bounds(50, 50, 100, 1e-5) == (0.0, 0.0)
    assert one_run_bound(100, 10, 0, 1e-5) == 0.0
