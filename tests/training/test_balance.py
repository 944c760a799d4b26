"""Groups that weigh alike: who is drawn how often, by what a step is divided, and at what rate it is charged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fedimaging.data.dataset import Dataset
from fedimaging.errors import DataError, PrivacyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.privacy.units import group_units
from fedimaging.runs import hospitals
from fedimaging.site.plan import private_plan, public_plan, update_noise
from fedimaging.study.schema import Study
from fedimaging.training.balance import mean_relative, rates_of, relative_rates, thinned
from fedimaging.training.local import train_locally
from fedimaging.training.spec import BalanceSpec
from fedimaging.training.workbench import SiteRecords
from tests.training.test_local import _bench, _records

MakeStudy = Callable[..., Study]
QUARTER = BalanceSpec(column="sex", shares={"F": 0.25, "M": 0.75})
SHARES = "training.balance={column: sex, shares: {F: 0.25, M: 0.75}}"


def _with_sex(records: SiteRecords, sexes: list[str]) -> SiteRecords:
    dataset: Dataset = replace(records.dataset, columns={"sex": np.array(sexes)})
    return SiteRecords(dataset, records.rows)


def test_a_group_is_drawn_by_one_over_its_share_and_never_more_than_allowed() -> None:
    assert QUARTER.odds() == pytest.approx({"F": 2.0, "M": 2 / 3})
    assert BalanceSpec(column="sex", shares={"F": 0.1, "M": 0.9}).odds() == pytest.approx({"F": 3.0, "M": 5 / 9})  # not 5
    assert relative_rates(QUARTER) == pytest.approx({"F": 1.0, "M": 1 / 3, "": 0.5})
    assert mean_relative(QUARTER) == pytest.approx(0.5)  # 0.25 + 0.75 / 3
    third = BalanceSpec(column="sex", shares={"F": 0.2, "M": 0.6})
    assert mean_relative(third) == pytest.approx((0.2 * 2.5 + 0.6 * 5 / 6 + 0.2) / 2.5)


def test_the_plan_is_charged_at_the_largest_rate_and_divides_by_a_public_number(tiny_study: MakeStudy) -> None:
    study = tiny_study(SHARES, "training.batch_size=20", "privacy.target_epsilon=3.0", "federation.rounds=4")
    ids = np.array([f"p{i}" for i in range(100)])
    plan, plain = private_plan(study, ids), private_plan(tiny_study("training.batch_size=20", "federation.rounds=4"), ids)
    assert plan.sample_rate == pytest.approx(0.4)  # F: twice 0.2
    assert plan.charge().sample_rate == plan.sample_rate
    assert plan.steps_per_round == plain.steps_per_round
    assert plan.denominator == pytest.approx(20.0)  # 25 F at 0.4 and 75 M at 0.4 / 3
    assert epsilon([plan.charge(plan.steps_per_round * 4)], plan.delta) == pytest.approx(3.0, abs=0.02)
    other_draw = np.array([f"q{i}" for i in range(100)])
    assert private_plan(study, other_draw) == plan == public_plan(study, 100)  # nothing is counted from the data
    assert update_noise(study, plan) == pytest.approx(
        study.training.learning_rate * plan.noise_multiplier / 20.0 * plan.steps_per_round**0.5)


def test_epsilon_is_that_of_everybody_drawn_as_often_as_the_group_drawn_most(tiny_study: MakeStudy) -> None:
    keys = ("privacy={noise_multiplier: 1.0, delta: 1.0e-4}", "federation.rounds=4")
    ids = np.array([f"p{i}" for i in range(100)])
    balanced = private_plan(tiny_study(SHARES, "training={optimizer: sgd, learning_rate: 1.0, batch_size: 20, local_steps: 5, "
                                       "balance: {column: sex, shares: {F: 0.25, M: 0.75}}}", *keys), ids)
    plain = private_plan(tiny_study(
        "training={optimizer: sgd, learning_rate: 1.0, batch_size: 40, local_steps: 5}", *keys), ids)
    assert epsilon([balanced.charge(20)], 1e-4) == epsilon([plain.charge(20)], 1e-4)


def test_a_full_batch_draws_the_small_group_always_and_the_large_one_less(tiny_study: MakeStudy) -> None:
    plan = private_plan(tiny_study(SHARES, "training.batch_size=100000"), np.array([f"p{i}" for i in range(80)]))
    assert plan.sample_rate == 1.0
    assert plan.denominator == pytest.approx(40.0)  # 20 F, and a third of 60 M


def test_the_sampler_draws_at_these_rates_and_each_patient_alone() -> None:
    sexes = ["F"] * 2 + ["M"] * 2 + [""] * 2 + ["other"] * 2
    records = _with_sex(_records((16, 16)), sexes)
    units = group_units(records.patient_ids, "patient")
    rates = rates_of(records, units, "sex", relative_rates(QUARTER))
    assert rates.tolist() == pytest.approx([1.0, 1 / 3, 0.5, 0.5])
    noise, steps = SimulatedNoise(0, "h", 1), 20_000
    drawn = np.array([
        thinned(noise.inclusion(step, 4, 0.4), rates, noise.generator(step, "balance")) for step in range(steps)])
    expected = 0.4 * rates
    assert np.abs(drawn.mean(0) - expected).max() < 4 * np.sqrt(0.24 / steps)
    both = (drawn[:, 0] & drawn[:, 1]).mean()
    assert abs(both - expected[0] * expected[1]) < 4 * np.sqrt(0.06 / steps)


def test_a_patients_group_is_the_first_that_a_scan_states_and_a_record_has_its_own() -> None:
    records = _with_sex(_records((16, 16), patients=2), ["", "F", "M", ""])
    rates = relative_rates(QUARTER)
    ids = records.patient_ids
    of = {unit: rates_of(records, group_units(ids, unit), "sex", rates).tolist() for unit in ("patient", "record")}
    assert of["patient"] == pytest.approx([1.0, 1 / 3])
    assert of["record"] == pytest.approx([0.5, 1.0, 1 / 3, 0.5])  # else one record would decide how often another is drawn


def test_a_private_round_leaves_out_whom_the_second_coin_leaves_out() -> None:
    records = _with_sex(_records((16, 16)), ["F"] * 4 + ["M"] * 4)
    training = {"local_steps": 1, "batch_size": 4, "balance": QUARTER.model_dump()}
    bench = _bench(training=training)
    plan = DpPlan("patient", 4, 1.0, 0.0, 1e9, 1e-3, 1, 5, engine="loop",
                  relative_rates={"F": 1.0, "M": 1e-12, "": 0.5}, mean_relative=0.5)
    only_women = SiteRecords(records.dataset, records.rows[:4])
    balanced = train_locally(bench, bench.initial, records, plan, SimulatedNoise(0, "h", 1), key="k", round=1)
    alone = replace(plan, n_units=2, relative_rates={}, mean_relative=1.0)
    women = train_locally(bench, bench.initial, only_women, alone, SimulatedNoise(0, "h", 1), key="k", round=1)
    np.testing.assert_allclose(balanced.end, women.end, atol=1e-6)  # both are divided by 2


def test_without_privacy_passes_are_thinned_and_equal_shares_change_nothing() -> None:
    records = _with_sex(_records((16, 16), patients=8), ["F"] * 4 + ["M"] * 12)
    seen: dict[str, list[int]] = {}
    original = SiteRecords.inputs
    for name, shares in (("plain", None), ("equal", {"F": 0.5, "M": 0.5}), ("quarter", {"F": 0.25, "M": 0.75})):
        balance = {} if shares is None else {"balance": {"column": "sex", "shares": shares}}
        bench = _bench(privacy=None, training={"local_steps": 60, "batch_size": 16, **balance})
        drawn: list[int] = []

        def inputs(self: SiteRecords, places: np.ndarray, drawn: list[int] = drawn) -> object:
            drawn += places.tolist()
            return original(self, places)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SiteRecords, "inputs", inputs)
            train_locally(bench, bench.initial, records, None, None, key="k", round=1)
        seen[name] = drawn
    assert seen["plain"] == seen["equal"]
    women = sum(place < 4 for place in seen["quarter"]) / len(seen["quarter"])
    assert women == pytest.approx(0.5, abs=0.06)  # a quarter of the scans, half of the training


def test_what_cannot_be_is_refused(tiny_study: MakeStudy, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"add up to 1\.2"):
        BalanceSpec(column="sex", shares={"F": 0.6, "M": 0.6})
    with pytest.raises(PrivacyError, match="relative_rates"):
        DpPlan("patient", 4, 1.0, 1.0, 1.0, 1e-3, 1, 5, relative_rates={"F": 2.0, "": 1.0})
    study = tiny_study("training.balance={column: gender, shares: {F: 0.5, M: 0.5}}")
    with pytest.raises(DataError, match=r"training\.balance\.column='gender' is not known"):
        hospitals.make_federation(study, hospitals.load_data(study), tmp_path, "cpu")
