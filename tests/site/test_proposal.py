"""A person sees what a study would do and cost; the policy refuses with every reason; a decision is kept with its author."""

from pathlib import Path
from typing import Any

import pytest

from fedimaging.errors import DataError, LedgerError, SiteError, StudyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.site import approvals, audit_log
from fedimaging.site.folder import SiteFolder
from fedimaging.site.hospital import open_hospital_site
from fedimaging.site.proposal import Proposal, approve, propose
from fedimaging.site.site import TrainInstruction
from fedimaging.study.load import load

from .making import hospital, pictures, set_policy, study_file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> SiteFolder:
    return hospital(tmp_path / "north", root)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return study_file(tmp_path / "study.yaml")


def said(proposal: Proposal) -> dict[str, str]:
    """The lines by their first word; the two of the budget are joined."""
    found: dict[str, str] = {}
    for line in proposal.lines():
        name, text = line.split(None, 1)
        found[name] = f"{found[name]} | {text}" if name in found else text
    return found


def test_the_words_say_what_the_study_would_do(folder: SiteFolder, study: Path) -> None:
    proposal = propose(folder, study)
    words = said(proposal)
    assert words["Study"] == f"tiny, fingerprint {load(study).fingerprint}"
    assert words["Learns"] == "binary: label, from scans of 16 x 16 with 1 channel(s)"
    assert words["Hospitals"] == "north, south, west train; a round needs the updates of 1"
    assert words["Patients"] == "8 train, 2 test"
    assert words["Rounds"] == "3, of 2 step(s) each; a step draws 4 patients on average"
    assert words["Privacy"].startswith("each patient, with all their scans, counts as one; clipped at 1, noise multiplier 1")
    assert "epsilon 0 is spent" in words["Budget"]
    assert "in any 366 days" in words["Budget"]
    assert words["Noise"].startswith("from the operating system's secure generator")
    assert words["Leaves"].endswith("clipped and with noise; of evaluations, nothing")
    assert proposal.plan is not None
    spent = epsilon([proposal.plan.charge(6)], 1e-4)
    assert [one.after for one in proposal.spending] == [spent, spent]


def test_what_is_weaker_is_said_plainly(folder: SiteFolder, root: Path, tmp_path: Path) -> None:
    set_policy(folder, unit="any", without_privacy=True, allow_simulated_noise=True, release_evaluation="metrics")
    record = study_file(tmp_path / "r.yaml", privacy={"unit": "record", "noise_multiplier": 1.0, "delta": 1e-3})
    words = said(propose(folder, record))
    assert words["Privacy"].startswith("each single scan (weaker) counts as one")
    assert words["Noise"].startswith("SIMULATED")
    assert words["Leaves"].endswith("exact metrics and the number of test patients, without noise")
    words = said(propose(folder, study_file(tmp_path / "p.yaml", privacy=None)))
    assert words["Privacy"].startswith("NONE: the study trains without differential privacy")
    assert "as they are" in words["Leaves"]
    held = study_file(tmp_path / "h.yaml", hospitals={"sites": ["south"], "held_out": ["north"]})
    words = said(propose(folder, held))
    assert words["Role"] == "this hospital only tests the models; it trains nothing"
    assert words["Leaves"].startswith("of evaluations")


def test_left_out_patients_are_counted_for_the_person(folder: SiteFolder, study: Path) -> None:
    folder.opt_out_file.write_text("p00\n")
    assert said(propose(folder, study))["Patients"] == "7 train, 2 test; left out: 1 opted out, 0 without consent"


def test_every_reason_is_told_and_nothing_is_written(folder: SiteFolder, study: Path) -> None:
    set_policy(folder, minimum_noise_multiplier=2.0, maximum_rounds=1, in_total={"epsilon": 0.5, "delta": 1e-4})
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(SiteError) as caught:
        approve(folder, propose(folder, study), who="Dr. A", why="x")
    total = "in total (delta 0.0001), above the 0.5 allowed"
    for reason in ("below minimum_noise_multiplier=2", "above maximum_rounds=1", total):
        assert reason in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_what_other_studies_spent_counts_and_what_this_one_did_is_not_counted_twice(folder: SiteFolder, study: Path) -> None:
    approve(folder, propose(folder, study), who="Dr. A", why="x")
    whole = propose(folder, study).spending[0].after
    site = open_hospital_site(folder, load(study).fingerprint)
    for round in (1, 2):
        site.train(TrainInstruction(site.fingerprint, round, site.bench.initial))
    again = propose(folder, study).spending[0]
    assert 0 < again.before < again.after == pytest.approx(whole)
    other = propose(folder, study_file(study.with_name("other.yaml"), seed=9)).spending[0]
    assert other.after > whole


def test_noised_evaluations_are_in_the_price(folder: SiteFolder, study: Path) -> None:
    before = propose(folder, study).spending[0].after
    set_policy(folder, release_evaluation="noised", evaluation_noise_multiplier=4.0)
    proposal = propose(folder, study)
    assert proposal.spending[0].after > before + 0.2
    assert "counts with noise 4, charged to the budget" in said(proposal)["Leaves"]


def test_a_calibration_is_in_the_price_and_in_words(folder: SiteFolder, study: Path) -> None:
    asking = study_file(study.with_name("asking.yaml"), evaluation={"calibration": "temperature", "resamples": 100})
    kept = propose(folder, asking)
    assert "for the calibration it asks for, nothing" in said(kept)["Leaves"]
    set_policy(folder, release_calibration="noised", calibration_noise_multiplier=2.0)
    proposal = propose(folder, asking)
    assert proposal.spending[0].after > kept.spending[0].after + 0.1
    assert "nine sums over validation patients with noise 2, charged to the budget" in said(proposal)["Leaves"]
    assert "calibration" not in said(propose(folder, study))["Leaves"]


def test_a_decision_is_kept_with_who_when_and_why_and_the_study_byte_for_byte(folder: SiteFolder, study: Path) -> None:
    approve(folder, propose(folder, study), who=" Dr. Ä ", why="Ethics 12/2026")
    [found] = approvals.newest(folder).values()
    assert (found.who, found.why, found.approved, found.name) == ("Dr. Ä", "Ethics 12/2026", True, "tiny")
    assert folder.study_file(found.study).read_bytes() == study.read_bytes()
    assert audit_log.read(folder.audit_file)[-1]["who"] == "Dr. Ä"
    approvals.revoke(folder, found.study[:6], who="Dr. B", why="over")
    [found] = approvals.newest(folder).values()
    assert (found.who, found.approved) == ("Dr. B", False)
    with pytest.raises(SiteError, match="is the beginning of 0 approved studies; approved are: none"):
        approvals.revoke(folder, found.study, who="Dr. B", why="over")


@pytest.mark.parametrize(("who", "why"), [("", "x"), ("Dr. A", " "), ("Dr.\nA", "x"), ("Dr. A", "\x1b[2Jx"), ("A" * 1001, "x")])
def test_nobody_decides_namelessly_or_in_two_lines(who: str, why: str, folder: SiteFolder, study: Path) -> None:
    with pytest.raises(SiteError, match=r"must be one line .* say who decides, and why"):
        approve(folder, propose(folder, study), who=who, why=why)
    assert approvals.newest(folder) == {}


def test_an_altered_record_of_approvals_stops_everything(folder: SiteFolder, study: Path) -> None:
    approve(folder, propose(folder, study), who="Dr. A", why="x")
    folder.approvals_file.write_text(folder.approvals_file.read_text().replace('"steps_per_round": 2', '"steps_per_round": 9'))
    with pytest.raises(LedgerError, match=r"approvals\.jsonl line 1 breaks the hash chain"):
        open_hospital_site(folder, load(study).fingerprint)


def test_a_studys_words_cannot_paint_on_the_screen(folder: SiteFolder, tmp_path: Path) -> None:
    path = study_file(tmp_path / "s.yaml", task={"class_names": ["no\x1b[1A\x1b[2Kepsilon 0", "yes"]})
    assert not any("\x1b" in line for line in propose(folder, path).lines())


@pytest.mark.parametrize(("blocks", "error", "told"), [
    ({"task": {"label": "tumour"}}, DataError, "column='tumour' is not known"),
    ({"federation": {"roundz": 3}}, StudyError, "roundz is not a known key; did you mean 'rounds'"),
    ({"model": {"name": "unet", "options": {}}}, StudyError, "cannot do task"),
], ids=str)  # fmt: skip
def test_what_cannot_be_looked_at_is_one_clear_error(
    blocks: dict[str, Any], error: type[Exception], told: str, folder: SiteFolder, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        propose(folder, study_file(tmp_path / "s.yaml", **blocks))


def test_a_study_that_leaves_out_noise_cannot_be_approved(folder: SiteFolder, tmp_path: Path) -> None:
    one_step = {"learning_rate": 0.1, "batch_size": 10, "local_steps": 1}
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "secure_sum": "ideal"}
    summed = study_file(tmp_path / "s.yaml", privacy=privacy, training=one_step)
    with pytest.raises(SiteError, match="secure_sum=ideal leaves out a part of the noise, which only a simulation may assume"):
        approve(folder, propose(folder, summed), who="Dr. A", why="x")


def test_what_a_study_does_for_fairness_and_for_the_hospital_alone_is_said(
    folder: SiteFolder, root: Path, tmp_path: Path
) -> None:
    own = {"kind": "fine_tune", "steps": 5, "learning_rate": 0.1}
    lines = said(propose(folder, study_file(tmp_path / "own.yaml", personalisation=own)))
    assert lines["Leaves"].endswith("of this hospital's own model, nothing")
    assert lines["Stays"].startswith("this hospital's own model, images")
    set_policy(folder, release_evaluation="metrics")
    assert "WITHOUT privacy" in said(propose(folder, study_file(tmp_path / "own.yaml", personalisation=own)))["Leaves"]
    set_policy(folder, maximum_steps=4)
    reasons = propose(folder, study_file(tmp_path / "own.yaml", personalisation=own)).reasons
    assert reasons == ("personalisation.steps=5 is above maximum_steps=4",)


def test_groups_that_are_drawn_unlike_are_charged_at_the_largest_rate_and_must_be_in_the_manifest(tmp_path: Path) -> None:
    balance = {"balance": {"column": "sex", "shares": {"F": 0.25, "M": 0.75}}}
    study = study_file(tmp_path / "balanced.yaml", training=balance)
    with_sex = pictures(tmp_path / "data", sex=["F" if number % 4 == 0 else "M" for number in range(30)])
    proposal = propose(hospital(tmp_path / "north", with_sex), study)
    assert proposal.plan is not None
    assert proposal.plan.sample_rate == pytest.approx(2 * 4 / proposal.plan.n_units)
    assert "largest rate, 1" in said(proposal)["Sampling"]
    with pytest.raises(DataError, match=r"training\.balance\.column='sex' is not known"):
        propose(hospital(tmp_path / "other", pictures(tmp_path / "plain")), study)

