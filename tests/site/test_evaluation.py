"""What leaves of an evaluation in each mode of the policy, and what it costs."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedimaging.errors import BudgetExceeded, SiteRefusal
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger import Ledger
from fedimaging.runs import hospitals
from fedimaging.site import site as site_module
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site, TrainInstruction
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
NOISED = ("policy.release_evaluation=noised", "privacy.engine=loop")


def opened(study: Study, folder: Path, place: int = 0) -> Site:
    hospitals.make_federation(study, hospitals.load_data(study), folder, "cpu").save()
    return open_simulated_site(folder, place)


def ask(site: Site, round: int = 1, shift: float = 0.0) -> TrainInstruction:
    return TrainInstruction(site.fingerprint, round, site.bench.initial + np.float32(shift))


def charges(site: Site) -> list[Charge]:
    return Ledger(site.folder / "ledger.sqlite").charges()


def test_a_noised_evaluation_is_charged_once_a_question(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*NOISED), tmp_path)
    first = site.evaluate(ask(site), final=False)
    assert charges(site) == [Charge(4.0, 1.0, 1, "patient")]
    assert site.evaluate(ask(site), final=True).totals["cells"].tolist() == first.totals["cells"].tolist()
    assert len(charges(site)) == 1  # asked again: the same bytes, at no cost
    other = site.evaluate(ask(site, shift=1e-3), final=False)
    assert len(charges(site)) == 2
    apart = other.totals["cells"] - first.totals["cells"]  # of other weights: noise of its own, not the same once more
    assert apart.std() == pytest.approx(4.0 * math.sqrt(2), rel=0.5)
    assert (first.release, first.predictions, math.isnan(first.loss)) == ("noised", {}, True)
    spent = site.privacy_spent()
    assert spent is not None
    assert (spent.evaluations, spent.steps, spent.unit) == (2, 2, "patient")


def test_the_charge_is_on_the_disk_before_the_first_test_patient_is_read(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = opened(tiny_study(*NOISED), tmp_path)

    def dies(*_: object, **__: object) -> None:
        assert len(charges(site)) == 1
        raise MemoryError

    monkeypatch.setattr(site_module, "evaluate", dies)
    with pytest.raises(MemoryError):
        site.evaluate(ask(site), final=True)
    assert len(charges(site)) == 1  # a crash counts as spent


def test_training_and_evaluation_share_one_budget(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*NOISED), tmp_path)
    poor = replace(site, budget=Budget(0.5, 1e-5))
    with pytest.raises(BudgetExceeded) as caught:
        poor.evaluate(ask(site), final=True)
    assert caught.value.code == "budget_exceeded"
    assert charges(site) == []
    assert not (site.folder / "evaluation.npz").exists()
    site.train(ask(site))
    assert site.plan is not None
    enough_for_one = replace(site, budget=Budget(1.0, 1e-5))
    with pytest.raises(BudgetExceeded):
        enough_for_one.evaluate(ask(site), final=True)  # training took it
    assert charges(site) == [site.plan.charge()]


@pytest.mark.parametrize("rule", ["no budget", "no simulated noise"])
def test_noise_that_cannot_be_kept_is_refused(rule: str, tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*NOISED), tmp_path)
    if rule == "no budget":
        site.budget = None
    else:
        site.policy = site.policy.model_copy(update={"allow_simulated_noise": False})
    with pytest.raises(SiteRefusal) as caught:
        site.evaluate(ask(site), final=True)
    assert caught.value.code == "privacy"
    assert not (site.folder / "evaluation.npz").exists()


def test_one_patient_moves_what_leaves_by_the_sensitivity_alone(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*NOISED), tmp_path / "a")
    everyone = site.evaluate(ask(site), final=True).totals["cells"]
    patients = site.test_records.patient_ids
    fewer = opened(tiny_study(*NOISED), tmp_path / "b")  # the same simulated noise, one patient less
    fewer.test_records = replace(fewer.test_records, rows=fewer.test_records.rows[patients != patients[0]])
    without = fewer.evaluate(ask(fewer), final=True).totals["cells"]
    assert 0 < np.linalg.norm(everyone - without) <= 1 + 1e-5


def test_a_hospital_without_test_patients_releases_noise(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*NOISED), tmp_path)
    site.test_records = replace(site.test_records, rows=site.test_records.rows[:0])
    found = site.evaluate(ask(site), final=True)
    assert found.totals["cells"].shape == (1, 2, 16)
    assert found.totals["cells"].std() == pytest.approx(4.0, rel=0.5)
    assert math.isnan(found.metrics["auroc"])


def test_coarse_figures_of_few_patients_do_not_leave(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study("policy.release_evaluation=coarsened", "privacy.engine=loop"), tmp_path)
    count = site.test_records.n_patients
    site.policy = site.policy.model_copy(update={"evaluation_least_patients": count})
    found = site.evaluate(ask(site), final=True)
    assert (found.n_patients, found.release, found.predictions, found.totals) == (count, "coarsened", {}, {})
    for value in (*found.metrics.values(), found.loss):
        assert value / 0.05 == pytest.approx(round(value / 0.05))
    site.policy = site.policy.model_copy(update={"evaluation_least_patients": count + 1})
    with pytest.raises(SiteRefusal) as caught:
        site.evaluate(ask(site), final=True)
    assert caught.value.code == "evaluation_not_released"
    assert not (site.folder / "ledger.sqlite").exists()


def test_a_training_hospital_without_privacy_claims_nothing_for_its_noised_evaluations(
    tiny_study: MakeStudy, tmp_path: Path
) -> None:
    site = opened(tiny_study(NOISED[0], "privacy=null"), tmp_path)
    assert site.evaluate(ask(site), final=True).release == "noised"
    assert len(charges(site)) == 1
    assert site.privacy_spent() is None


def test_a_held_out_hospital_says_what_its_evaluations_cost(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*NOISED, "hospitals.held_out=[hospital_03]"), tmp_path, place=2)
    assert site.plan is None
    site.evaluate(ask(site, round=2), final=True)
    spent = site.privacy_spent()
    assert spent is not None
    assert (spent.evaluations, spent.steps, spent.noise_multiplier, spent.sample_rate) == (1, 1, 4.0, 1.0)
    assert 0.5 < spent.epsilon <= spent.budget_epsilon
