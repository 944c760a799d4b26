import numpy as np
import pytest

from fedimaging.errors import PrivacyError
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.privacy.units import draw_scans, group_units, most_records, poisson_inclusion

IDS = np.array(["p2", "p1", "p2", "p3", "p2", "p1"])


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_patient_is_one_unit_with_all_scans() -> None:
    units = group_units(IDS, "patient")
    assert len(units) == 3
    assert [units.rows(u).tolist() for u in range(3)] == [[1, 5], [0, 2, 4], [3]]


def test_a_record_is_a_unit_of_its_own() -> None:
    assert [group_units(IDS, "record").rows(u).tolist() for u in range(6)] == [[0], [1], [2], [3], [4], [5]]


def test_no_rows_no_units() -> None:
    units = group_units(np.array([], dtype=str), "patient")
    drawn = draw_scans(units, np.zeros(0, dtype=bool), max_scans=2, views=1, generator=_generator())
    assert (len(units), drawn.n_units, drawn.rows.tolist()) == (0, 0, [])


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(PrivacyError, match="did you mean 'patient'"):
        group_units(IDS, "patients")


def test_drawn_scans_lie_unit_after_unit() -> None:
    units = group_units(IDS, "patient")
    drawn = draw_scans(units, np.array([True, False, True]), max_scans=4, views=1, generator=_generator())
    assert drawn.rows.tolist() == [1, 5, 3]
    assert drawn.unit_of_scan.tolist() == [0, 0, 1]
    assert drawn.n_units == 2


def test_at_most_max_scans_of_a_patient_each_equally_often() -> None:
    units = group_units(np.array(["a"] * 5 + ["b"]), "patient")
    generator = _generator()
    seen = np.zeros(6)
    for _ in range(2000):
        drawn = draw_scans(units, np.array([True, True]), max_scans=2, views=1, generator=generator)
        assert drawn.unit_of_scan.tolist() == [0, 0, 1]
        seen[drawn.rows] += 1
    assert seen[5] == 2000
    assert np.abs(seen[:5] / 2000 - 0.4).max() < 0.05


def test_views_stand_inside_their_unit() -> None:
    units = group_units(IDS, "patient")
    drawn = draw_scans(units, np.array([True, False, True]), max_scans=1, views=3, generator=_generator())
    assert drawn.unit_of_scan.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(set(drawn.rows[:3])) == 1


def test_included_must_have_one_entry_for_each_unit() -> None:
    with pytest.raises(PrivacyError, match="one entry for each of 3 units"):
        draw_scans(group_units(IDS, "patient"), np.ones(6, dtype=bool), max_scans=1, views=1, generator=_generator())


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="sample_rate"):
        poisson_inclusion(np.zeros(3), rate)


def test_10_poisson_sampler_every_unit_alone_at_the_same_rate() -> None:
    noise = SimulatedNoise(0, "hospital_01", 1)
    draws = np.stack([noise.inclusion(step, 2000, 0.016) for step in range(10_000)])
    sizes = draws.sum(1)
    assert np.abs(draws.mean(0) - 0.016).max() < 0.0063
    assert abs(sizes.mean() - 32) < 0.3
    assert abs(sizes.std() - 5.61) < 0.2  # sqrt(N q (1 - q)): units do not wait for each other
    pairs = (draws[:, :-1] & draws[:, 1:]).mean()
    assert abs(pairs - 0.016**2) < 2e-5


def test_10_a_small_site_draws_nobody_in_a_third_of_its_steps() -> None:
    noise = SimulatedNoise(0, "pilot", 1)
    empty = np.mean([not noise.inclusion(step, 40, 1 / 40).any() for step in range(10_000)])
    assert abs(empty - 0.363) < 0.02


def test_the_most_records_of_one_patient() -> None:
    assert most_records(np.array(["a", "b", "a", "c", "a"])) == 3
    assert most_records([]) == 0
