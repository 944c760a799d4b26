from fedimaging.aggregation.cohort import cohort

SITES = [f"s{i}" for i in range(10)]


def test_everybody_in_name_order_without_a_size() -> None:
    assert cohort(list(reversed(SITES)), None, seed=0, round=1) == SITES
    assert cohort(SITES, 99, seed=0, round=1) == SITES


def test_a_draw_depends_on_seed_and_round_alone() -> None:
    draws = {(seed, number): tuple(cohort(SITES, 4, seed=seed, round=number)) for seed in (0, 1) for number in (1, 2, 3)}
    assert len(set(draws.values())) > 3
    for (seed, number), drawn in draws.items():
        assert tuple(cohort(list(reversed(SITES)), 4, seed=seed, round=number)) == drawn
        assert len(set(drawn)) == 4
        assert list(drawn) == sorted(drawn)


def test_every_site_is_drawn_about_equally_often() -> None:
    counts = dict.fromkeys(SITES, 0)
    for number in range(1000):
        for site in cohort(SITES, 3, seed=5, round=number):
            counts[site] += 1
    assert all(230 < count < 370 for count in counts.values())
