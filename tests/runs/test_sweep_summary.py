"""Exact figures from made-up runs."""

import math

import pytest

from fedimaging.results import Interval
from fedimaging.runs.sweep_rows import Row, rows_of
from fedimaging.runs.sweep_summary import Cell, as_json, cells_of, t_interval
from tests.runs.made_up_sweep import arm, attack, interval, planned, report

VALUES = {(1.0, 0): 0.80, (1.0, 1): 0.84, (math.inf, 0): 0.90, (math.inf, 1): 0.92}


def _rows(**more: object) -> list[Row]:
    rows = []
    for run in planned():
        sites = {"north": VALUES[run.epsilon, run.seed] + 0.02, "south": VALUES[run.epsilon, run.seed] - 0.02}
        alone = {"north": 0.60 + run.seed / 50, "south": 0.80}  # their mean is 0.70 and 0.71
        baselines = {"pooled": arm(0.91, sites), "local_only": arm(0.99, alone)} if run.baselines else {}
        rows += rows_of(run, report(run, VALUES[run.epsilon, run.seed], sites, baselines=baselines, **more), None)
    return rows


def _cell(rows: list[Row], epsilon: float, arm: str = "federated", metric: str = "auroc") -> Cell:
    return next(cell for cell in cells_of(rows, metric) if (cell.epsilon, cell.arm) == (epsilon, arm))


def test_the_t_interval_is_students() -> None:
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.302653 / math.sqrt(3)), pytest.approx(2 + 4.302653 / math.sqrt(3)))
    assert t_interval([1.0]) == (None, None)


def test_the_t_interval_stays_where_values_can_be() -> None:
    low, high = t_interval([0.94, 0.99, 0.98], (0.0, 1.0))
    assert (low, high) == (pytest.approx(0.97 - 4.302653 * 0.0152753, abs=1e-6), 1.0)
    assert t_interval([0.0, 0.1], (0.0, 1.0))[0] == 0.0


@pytest.mark.parametrize(("metric", "test", "gap"), [("auroc", (0.0, 1.0), (-1.0, 1.0)), ("loss", (-1.0, 2.0), (-2.0, 2.0))])
def test_an_interval_over_seeds_leaves_the_metrics_range_only_where_there_is_none(
    metric: str, test: tuple[float, float], gap: tuple[float, float]
) -> None:
    """Two seeds that differ by 0.8: Student's interval is 5 wide to each side."""
    rows = [
        Row(run, "federated", "test", "", metric, Interval(value, math.nan, math.nan, 40))
        for run, value in zip(planned(), (0.1, 0.9, 0.9, 0.5), strict=True)
    ]
    cell = _cell(rows, 1.0, metric=metric)
    for one, (least, most) in ((cell.test, test), (cell.gaps["non_private"], gap)):
        assert one is not None
        assert one.low is not None
        assert one.high is not None
        assert (one.low, one.high) == (least, most) if metric == "auroc" else one.low < least < most < one.high


def test_a_cell_is_the_mean_of_its_seeds_with_both_intervals() -> None:
    test = _cell(_rows(), 1.0).test
    assert test is not None
    assert (test.mean, test.n_seeds, test.n_patients) == (pytest.approx(0.82), 2, 40)
    assert (test.patients_low, test.patients_high) == (pytest.approx(0.77), pytest.approx(0.87))
    assert test.low == pytest.approx(0.82 - 12.7062 * 0.02, abs=1e-5)  # t with 1 degree of freedom, sd / sqrt(2) = 0.02


def test_gaps_are_paired_by_seed_and_positive_where_the_cell_is_worse() -> None:
    gaps = _cell(_rows(), 1.0).gaps
    assert gaps["non_private"].mean == pytest.approx(0.09)  # 0.10 and 0.08
    assert gaps["non_private"].high == pytest.approx(0.09 + 12.7062 * 0.01, abs=1e-5)
    assert gaps["pooled"].mean == pytest.approx(0.09)
    assert gaps["local_only"].mean == pytest.approx(-0.115)
    assert gaps["local_only"].low == pytest.approx(-0.115 - 12.7062 * 0.015, abs=1e-5)


def test_local_only_is_compared_in_the_mean_of_hospitals() -> None:
    """Its scores over all patients come from different models; 0.99 there says nothing."""
    rows = _rows()
    alone = _cell(rows, math.inf, "local_only")
    assert alone.site_mean is not None
    assert alone.site_mean.mean == pytest.approx(0.705)
    assert alone.gaps["non_private"].mean == pytest.approx(0.91 - 0.705)
    assert _cell(rows, math.inf).gaps["local_only"].mean == pytest.approx(0.705 - 0.91)


def test_nothing_is_compared_with_itself_and_baselines_are_cells_of_their_own() -> None:
    rows = _rows()
    assert set(_cell(rows, math.inf).gaps) == {"pooled", "local_only"}
    assert set(_cell(rows, math.inf, "pooled").gaps) == {"non_private", "local_only"}
    assert [(c.epsilon, c.arm) for c in cells_of(rows, "auroc")] == [
        (1.0, "federated"), (math.inf, "federated"), (math.inf, "pooled"), (math.inf, "local_only"),
    ]


def test_where_lower_is_better_gaps_and_the_worst_hospital_turn_round() -> None:
    rows = [
        Row(row.run, row.arm, row.scope, row.name, "brier", row.result) for row in _rows() if row.metric == "auroc"
    ]
    cell = _cell(rows, 1.0, metric="brier")
    assert cell.gaps["non_private"].mean == pytest.approx(-0.09)
    assert cell.worst("site") == "north"
    assert _cell(_rows(), 1.0).worst("site") == "south"


def test_a_seed_without_a_value_leaves_its_pair_out() -> None:
    run_a, run_b, *plain = planned()
    rows = rows_of(run_a, report(run_a, 0.8), None)
    rows += rows_of(run_b, report(run_b, 0.0) | {"test": {"auroc": interval(None)}}, None)
    for run in plain:
        rows += rows_of(run, report(run, 0.9), None)
    cell = _cell(rows, 1.0)
    assert cell.test is not None
    assert (cell.test.n_seeds, cell.gaps["non_private"].n_seeds) == (1, 1)
    assert cell.test.low is None


def test_groups_their_gap_and_attacks_come_through() -> None:
    gap = {"metric": "auroc", "best": "F", "worst": "M", **interval(0.2), "p_value": 0.01}
    groups = {"sex": {"F": {"auroc": interval(0.9)}, "M": {"auroc": interval(0.7)}, "too few": {"groups": 1, "n_patients": 3}}}
    run = planned((1.0,), 1, baselines=False)[0]
    rows = rows_of(run, report(run, 0.8, groups=groups, group_gaps={"sex": gap, "age": None}), attack())
    cell = _cell(rows, 1.0)
    assert set(cell.of("group")) == {"sex=F", "sex=M"}
    assert cell.worst("group") == "sex=M"
    assert cell.group_gaps["sex"].mean == 0.2
    assert cell.gap_p_values == {"sex": (0.01,)}
    attacked = cell.attacks["loss threshold, per patient"]
    assert {metric: one.mean for metric, one in attacked.items()} == {
        "auc": 0.52, "tpr_at_1%": 0.02, "ceiling_tpr_at_1%": 0.03,
    }


def test_attacks_on_several_targets_are_told_apart_by_them() -> None:
    run = planned((1.0,), 1, baselines=False)[0]
    once = attack()
    twice = once | {"attacks": [*once["attacks"], once["attacks"][0] | {"target": "updates"}]}
    names = {row.name for row in rows_of(run, report(run, 0.8), twice) if row.scope == "attack"}
    assert names == {"loss threshold at final model, per patient", "loss threshold at updates, per patient"}


def test_summary_json_names_infinity() -> None:
    cells = cells_of(_rows(), "auroc")
    tree = as_json(cells, "auroc", [], [0, 1])
    assert [cell["epsilon"] for cell in tree["cells"]] == [1.0, "inf", "inf", "inf"]
    assert tree["cells"][0]["worst_site"] == "south"
    assert tree["cells"][0]["held_out"] is None


def test_keys_of_the_privacy_block_are_compared_with_the_one_run_that_has_none() -> None:
    runs = planned((1.0, math.inf), 1, overrides=("privacy.clip_norm=0.5,1",))
    rows = [row for run in runs for row in rows_of(run, report(run, 0.9 if run.baselines else 0.8), None)]
    private = [cell for cell in cells_of(rows, "auroc") if cell.unit]
    assert [cell.gaps["non_private"].mean for cell in private] == [pytest.approx(0.1)] * 2
