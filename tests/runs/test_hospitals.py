"""Plans of simulated hospitals: what is read off the data, and what of it every charge carries."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedimaging.errors import PrivacyError, StudyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.released_metrics import release_charge
from fedimaging.results import PrivacySpent
from fedimaging.runs import hospitals
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.site.simulated import SimulatedFederation, open_simulated_site
from fedimaging.site.site import TrainInstruction
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
RECORD = ("privacy.unit=record", "privacy.engine=vmap", "data.phantoms.scans_per_patient=[3,3]")


def federation(study: Study, folder: Path) -> SimulatedFederation:
    return hospitals.make_federation(study, hospitals.load_data(study), folder, "cpu")


def test_a_record_level_plan_declares_how_many_scans_a_patient_has(tiny_study: MakeStudy, tmp_path: Path) -> None:
    made = federation(tiny_study(*RECORD), tmp_path)
    assert {plan.scans_per_patient for plan in made.plans.values()} == {3}
    assert {plan.charge().scans_per_patient for plan in made.plans.values()} == {3}
    whole = federation(tiny_study("privacy.engine=vmap"), tmp_path)
    assert {plan.charge().scans_per_patient for plan in whole.plans.values()} == {None}


def test_a_record_level_run_reports_what_it_means_for_a_patient(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*RECORD, "privacy.target_epsilon=2", "federation.rounds=1")
    with LiveView(1, quiet=True) as view:
        report = json.loads(simulate(study, tmp_path / "run", Options(report=False, workers=1), view).read_text())
    for name, site in report["sites"].items():
        spent = site["privacy"]
        assert (spent["unit"], spent["scans_per_patient"]) == ("record", 3)
        assert spent["epsilon"] <= 2 < spent["patient_epsilon"]
        charges = Ledger(tmp_path / "run" / "sites" / name / "ledger.sqlite").charges()
        assert {charge.scans_per_patient for charge in charges} == {3}


def test_without_a_declared_number_of_scans_nothing_is_said_about_patients(tiny_study: MakeStudy, tmp_path: Path) -> None:
    made = federation(tiny_study(*RECORD), tmp_path)
    made.save()
    site = open_simulated_site(tmp_path, 0)
    assert site.plan is not None
    assert site.budget is not None
    site.plan = replace(site.plan, scans_per_patient=None)
    site._charge(site.arm, 1, site.plan.charge())
    spent = site.privacy_spent()
    assert spent is not None
    assert (spent.scans_per_patient, spent.patient_epsilon) == (None, None)


@pytest.mark.parametrize("patient_epsilon", [12.5, None, float("inf")])
def test_no_limit_is_written_as_null(patient_epsilon: float | None) -> None:
    spent = PrivacySpent("record", 1.0, 1e-5, 8.0, "PLD", 10, 1.0, 0.1, 1.1, "secure", 4, patient_epsilon)
    assert spent.as_json()["patient_epsilon"] == (12.5 if patient_epsilon == 12.5 else None)


def test_a_patient_with_more_scans_than_declared_is_refused_and_nothing_spent(tiny_study: MakeStudy, tmp_path: Path) -> None:
    federation(tiny_study(*RECORD), tmp_path).save()
    site = open_simulated_site(tmp_path, 0)
    assert site.plan is not None
    site.plan = replace(site.plan, scans_per_patient=2)
    with pytest.raises(PrivacyError, match="scans_per_patient=2 is below the 3 records that one patient has"):
        site.train(TrainInstruction(site.fingerprint, 1, site.bench.initial))
    assert not (site.folder / "ledger.sqlite").exists()


def test_hospitals_that_the_study_does_not_name_are_left_out(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study("hospitals.sites=[hospital_01, hospital_03]", "hospitals.held_out=[hospital_03]")
    dataset = hospitals.load_data(study)
    named = hospitals.make_federation(study, dataset, tmp_path, "cpu")
    assert (named.names, named.train_names) == (("hospital_01", "hospital_03"), ("hospital_01",))
    other = dataset.columns["site"] == "hospital_02"
    assert (named.train_site[other] == -1).all()
    assert (named.test_site[other] == -1).all()
    whole = hospitals.make_federation(tiny_study("hospitals.held_out=[hospital_03]"), dataset, tmp_path, "cpu")
    assert named.plans["hospital_01"] == whole.plans["hospital_01"]


SUM = ("privacy.secure_sum=ideal", "training.local_epochs=null", "training.local_steps=1", "federation.minimum_replies=3")
EQUAL = ("federation.weights=public_patients", "training.batch_size=1000")


def test_under_an_ideal_secure_sum_the_shares_add_up_to_the_noise_of_one(tiny_study: MakeStudy, tmp_path: Path) -> None:
    made = federation(tiny_study(*SUM, *EQUAL), tmp_path)
    plans = made.plans.values()
    total = sum((plan.noise_share * plan.noise_multiplier) ** 2 for plan in plans) ** 0.5
    assert total == pytest.approx(max(plan.noise_multiplier for plan in plans))
    assert [plan.noise_share for plan in hospitals.local_only(made).plans.values()] == [1.0] * 3
    pooled = hospitals.pooled(made, hospitals.load_data(made.study))
    assert pooled.plans["pooled"].noise_share == 1.0
    alone = federation(tiny_study(*SUM[1:], *EQUAL), tmp_path)
    assert {name: plan.charge() for name, plan in made.plans.items()} == {n: p.charge() for n, p in alone.plans.items()}


def test_hospitals_whose_noise_differs_share_the_greatest(tiny_study: MakeStudy, tmp_path: Path) -> None:
    made = federation(tiny_study(*SUM, "federation.weights=uniform", "training.batch_size=4"), tmp_path)
    noises = {plan.noise_multiplier for plan in made.plans.values()}
    assert len(noises) > 1
    shared = [plan.noise_share * plan.noise_multiplier for plan in made.plans.values()]
    assert shared == pytest.approx([max(noises) / 3**0.5] * 3)


@pytest.mark.parametrize(("change", "said"), [
    ("federation.minimum_replies=2", "lets a round end without the noise of one of the 3 hospitals; set it to 3"),
    ("federation.weights=uniform", "every patient to weigh the same"),
    ("training.batch_size=4", "every patient to weigh the same"),
])
def test_a_sum_that_would_protect_somebody_less_is_refused(
    change: str, said: str, tiny_study: MakeStudy, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=said):
        federation(tiny_study(*SUM, *EQUAL, change), tmp_path)


def test_the_report_says_that_the_sum_was_assumed(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*SUM, *EQUAL, "federation.rounds=1")
    with LiveView(1, quiet=True) as view:
        report = json.loads(simulate(study, tmp_path / "run", Options(report=False, workers=1), view).read_text())
    assert "assumes an ideal secure sum" in report["privacy"]["statement"]


def test_inverse_noise_weighs_by_what_the_noise_leaves(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study("federation.weights=inverse_noise", "training.batch_size=1000", "training.local_epochs=null",
                       "training.local_steps=1")
    made = federation(study, tmp_path)
    weights = hospitals.public_weights(made, hospitals.load_data(study))
    first = made.train_names[0]
    for name, plan in made.plans.items():  # everybody is drawn in each step: the noise on the mean falls with the number
        expected = [(each.n_units / each.noise_multiplier) ** 2 for each in (plan, made.plans[first])]
        assert weights[name] / weights[first] == pytest.approx(expected[0] / expected[1])


def test_a_baseline_of_one_trainer_does_not_wait_for_as_many_as_the_federation(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study("federation.minimum_replies=3", "federation.rounds=1", "privacy=null")
    with LiveView(1, quiet=True) as view:
        options = Options(report=False, workers=1, baselines=True)
        report = json.loads(simulate(study, tmp_path / "run", options, view).read_text())
    assert report["baselines"]["pooled"]["test"]["auroc"]["value"] is not None


def test_validation_patients_of_a_hospital_neither_train_nor_test(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study("data.split={test: 0.3, validation: 0.3, seed: 0}", "hospitals.held_out=[hospital_03]")
    dataset = hospitals.load_data(study)
    made = hospitals.make_federation(study, dataset, tmp_path, "cpu")
    made.save()
    for place, name in enumerate(made.names):
        site = open_simulated_site(tmp_path, place)
        ids = [set(part.patient_ids) for part in (site.train_records, site.test_records, site.validation_records)]
        assert sum(map(len, ids)) == len(set().union(*ids)) == len(set(dataset.patient_ids[dataset.columns["site"] == name]))
        assert [bool(part) for part in ids] == ([False, True, False] if name == "hospital_03" else [True] * 3)
    shifted = hospitals.pooled(made, dataset)
    assert ((shifted.validation_site >= 0) == (made.validation_site >= 0)).all()
    assert {shifted.names[i] for i in shifted.validation_site if i >= 0} == {"hospital_01", "hospital_02"}


ONE_ROUND = ("privacy.engine=vmap", "federation.rounds=1", "training.batch_size=1000", "training.local_epochs=null",
             "training.local_steps=1")  # fmt: skip


@pytest.mark.parametrize("more", [(), ("policy.release_evaluation=noised",)], ids=["scores", "noised"])
def test_a_study_of_one_round_can_be_repeated_after_two_crashes(
    more: tuple[str, ...], tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each crash leaves its round charged, and the whole is within the budget; what it cost is more than was planned."""
    federation(tiny_study(*ONE_ROUND, *more), tmp_path).save()
    site = open_simulated_site(tmp_path, 0)
    instruction = TrainInstruction(site.fingerprint, 1, site.bench.initial)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("fedimaging.site.site.train_locally", _crash)
            with pytest.raises(KeyboardInterrupt):
                open_simulated_site(tmp_path, 0).train(instruction)
    again = open_simulated_site(tmp_path, 0)
    again.train(instruction)
    assert again.plan is not None
    assert again.budget is not None
    charges = Ledger(again.folder / "ledger.sqlite").charges()
    assert sum(charge.steps for charge in charges) == 3
    planned, spent = (epsilon([again.plan.charge(steps)], again.budget.delta) for steps in (1, 3))
    assert 1.5 * planned < spent <= again.budget.epsilon  # one and a half times the plan was too little


def _crash(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_budget_that_the_study_sets_has_no_room_for_a_crash(tiny_study: MakeStudy, tmp_path: Path) -> None:
    made = federation(tiny_study(*ONE_ROUND, "policy.budget_epsilon=8.5"), tmp_path)
    assert {budget.epsilon for budget in made.budgets.values()} == {8.5}


def test_a_hospital_that_only_evaluates_can_be_asked_again_after_two_crashes(tiny_study: MakeStudy, tmp_path: Path) -> None:
    noisy = ("policy.release_evaluation=noised", "policy.evaluation_noise_multiplier=1.0", "hospitals.held_out=[hospital_03]")
    made = federation(tiny_study(*ONE_ROUND, *noisy), tmp_path)
    budget = made.budgets["hospital_03"]
    asked, thrice = (epsilon([release_charge(1.0)] * times, budget.delta) for times in (1, 3))
    assert 1.5 * asked < thrice <= budget.epsilon
