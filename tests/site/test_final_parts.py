"""What leaves with the final model's evaluation beside the figures over everybody, and what it costs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedimaging.errors import SiteError, StudyError
from fedimaging.federated import wire
from fedimaging.privacy.budget import Budget
from fedimaging.privacy.ledger import Ledger
from fedimaging.runs import hospitals
from fedimaging.site import audit_log
from fedimaging.site.final_parts import final_charges
from fedimaging.site.policy import SitePolicy
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site, TrainInstruction
from fedimaging.study.load import validated
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
ASKED = ("evaluation.groups=[sex,age]", "evaluation.operating_point={sensitivity: 0.9}", "data.split.validation=0.2",
         "privacy.engine=loop")  # fmt: skip


def opened(study: Study, folder: Path, place: int = 0) -> Site:
    hospitals.make_federation(study, hospitals.load_data(study), folder, "cpu").save()
    return open_simulated_site(folder, place)


def ask(site: Site, round: int = 2) -> TrainInstruction:
    return TrainInstruction(site.fingerprint, round, site.bench.initial)


def booked(site: Site) -> list[str]:
    return [row.facts["run"] for row in Ledger(site.folder / "ledger.sqlite").rows() if row.kind == "reserved"]


def test_scores_of_validation_patients_leave_where_those_of_test_patients_do(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*ASKED), tmp_path)
    reply = site.evaluate(ask(site), final=True)
    assert len(reply.validation["scores"]) == len(site.validation_records) > 0
    assert reply.groups == {}  # the simulation knows whose scores they are
    assert not (site.folder / "ledger.sqlite").exists() or booked(site) == []
    assert site.evaluate(ask(site, 1), final=False).validation == {}


def test_noised_parts_are_charged_one_by_one_and_asked_again_cost_nothing(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*ASKED, "policy.release_evaluation=noised", "policy.release_groups=noised")
    site = opened(study, tmp_path)
    reply = site.evaluate(ask(site), final=True)
    assert booked(site) == ["federated/evaluation", "federated/validation/evaluation", "federated/groups/evaluation"]
    assert reply.validation["cells"].shape == (1, 2, 16)
    assert {name: array.shape for name, array in reply.groups.items()} == {
        "by.sex": (3, 1, 2, 16), "by.age": (5, 1, 2, 16), "noise_std": ()}  # fmt: skip
    assert float(reply.groups["noise_std"]) == pytest.approx(4.0 * 2**0.5)  # a patient is in one group of each of two columns
    again = site.evaluate(ask(site), final=True)
    assert np.array_equal(again.groups["by.sex"], reply.groups["by.sex"])
    assert len(booked(site)) == 3
    spent = site.privacy_spent()
    assert spent is not None
    assert spent.evaluations == 3
    assert len(final_charges(study, study.policy)) == 2


def test_a_part_that_would_pass_the_budget_stays_and_the_log_says_so(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*ASKED, "policy.release_evaluation=noised", "policy.release_groups=noised")
    site = replace(opened(study, tmp_path), budget=Budget(1.0, 1e-5))  # one release at noise 4 costs 0.9
    reply = site.evaluate(ask(site), final=True)
    assert (bool(reply.totals), reply.validation, reply.groups) == (True, {}, {})
    assert booked(site) == ["federated/evaluation"]
    codes = [event["code"] for event in audit_log.read(site.folder / "audit.jsonl") if event["event"] == "refused"]
    assert codes == ["budget_exceeded", "budget_exceeded"]


def test_by_default_nothing_leaves_of_groups(tiny_study: MakeStudy, tmp_path: Path) -> None:
    assert SitePolicy().release_groups == "none"
    site = opened(tiny_study("policy.release_evaluation=metrics"), tmp_path)
    site.study = tiny_study(*ASKED, "policy.release_evaluation=metrics", "policy.release_groups=metrics")
    site.fingerprint = site.study.fingerprint
    reply = site.evaluate(ask(site), final=True)
    assert (reply.groups, reply.validation) == ({}, {})


def test_no_count_below_the_minimum_is_in_what_a_hospital_sends(tiny_study: MakeStudy, tmp_path: Path) -> None:
    """Planted: a group of test patients smaller than the minimum, and another that is large enough."""
    study = tiny_study(*ASKED, "policy.release_evaluation=metrics", "policy.release_groups=metrics", "policy.minimum_group=8",
                       "data.phantoms.patients=240")  # fmt: skip
    site = opened(study, tmp_path)
    records = site.test_records
    ids = np.unique(records.patient_ids)
    few = np.isin(records.dataset.patient_ids, ids[:3])
    mine = np.isin(records.dataset.patient_ids, ids)
    records.dataset.columns["sex"] = np.where(few, "F", np.where(mine, "M", "F"))
    records.dataset.columns["age"] = np.full(len(few), "50")
    message = wire.write_evaluation(site.evaluate(ask(site), final=True))
    reply = wire.read_evaluation(message, round=2)
    women, men, _ = reply.groups["by.sex"]
    assert np.isnan(women).all()
    assert men[0] == (len(ids) - 3) // 8 * 8 >= 8
    counts = [value for name, array in reply.groups.items() for value in array[:, 0] if np.isfinite(value)]
    assert all(count >= 8 and count % 8 == 0 for count in counts)
    assert reply.validation == {}  # metrics alone carry no threshold


@pytest.mark.parametrize(("evaluation", "groups", "complaint"), [
    ("none", "noised", "needs evaluations that leave"), ("noised", "metrics", "more exact than"),
    ("coarsened", "metrics", "more exact than"),
])  # fmt: skip
def test_groups_leave_no_more_exactly_than_everybody(evaluation: str, groups: str, complaint: str, tiny_study: MakeStudy) -> None:
    with pytest.raises(SiteError, match=complaint):
        validated(SitePolicy, {"release_evaluation": evaluation, "release_groups": groups}, "policy.yaml", SiteError)
    with pytest.raises(StudyError, match=complaint):
        tiny_study(f"policy.release_evaluation={evaluation}", f"policy.release_groups={groups}")
