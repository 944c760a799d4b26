"""A hospital opened from its folder: the same numbers as a simulation, and its own files stand above every message."""

import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedimaging.errors import BudgetExceeded, DataError, RunError, SiteError, SiteRefusal
from fedimaging.runs import hospitals
from fedimaging.site import approvals, audit_log
from fedimaging.site.folder import SiteFolder
from fedimaging.site.hospital import largest_message, open_hospital_site
from fedimaging.site.kept_update import KeptUpdate
from fedimaging.site.proposal import approve, propose
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site, TrainInstruction
from fedimaging.study.load import load

from .making import hospital, pictures, set_policy, study_file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return study_file(tmp_path / "study.yaml")


def opened(folder: SiteFolder, study: Path) -> Site:
    return open_hospital_site(folder, load(study).fingerprint)


def ask(site: Site, round: int = 1, shift: float = 0.0) -> TrainInstruction:
    return TrainInstruction(site.fingerprint, round, site.bench.initial + np.float32(shift))


def events(folder: SiteFolder) -> list[str]:
    return [event["event"] for event in audit_log.read(folder.audit_file)]


def steps(folder: SiteFolder) -> int:
    return sum(charge.steps for charge in folder.ledger().charges())


def refused(folder: SiteFolder, fingerprint: str) -> str:
    with pytest.raises(SiteRefusal) as caught:
        open_hospital_site(folder, fingerprint)
    return caught.value.code


FIXED_STAGE = {"model": {"name": "wavelet_net", "options": {}}}


@pytest.mark.parametrize("blocks", [{}, {"privacy": None}, FIXED_STAGE], ids=["private", "plain", "fixed stage"])
def test_the_same_study_in_a_simulation_gives_the_same_plan_and_bits(blocks: Any, root: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study.yaml", **blocks)
    folder = hospital(tmp_path / "north", root, path, allow_simulated_noise=True, without_privacy=True)
    study = load(path, [f"data.root={root}"])
    assert study.fingerprint == load(path).fingerprint
    hospitals.make_federation(study, hospitals.load_data(study), tmp_path / "run", "cpu").save()
    simulated, real = open_simulated_site(tmp_path / "run", 0), opened(folder, path)
    assert (simulated.name, simulated.plan) == (real.name, real.plan)
    assert (real.train_records.features is not None) == (real.test_records.features is not None) == (blocks is FIXED_STAGE)
    for round in (1, 2):
        np.testing.assert_array_equal(simulated.train(ask(simulated, round)).delta, real.train(ask(real, round)).delta)
    assert real.noise_for(1).name == "simulated"
    noise = [event.get("noise") for event in audit_log.read(folder.audit_file)]
    assert noise.count("none" if "privacy" in blocks else "simulated") == 2


def test_a_hospital_uses_secure_noise_unless_its_policy_says_otherwise(root: Path, study: Path, tmp_path: Path) -> None:
    one, other = (opened(hospital(tmp_path / name, root, study), study) for name in ("a", "b"))
    assert one.noise_for(1).name == "secure"
    assert not np.array_equal(one.train(ask(one)).delta, other.train(ask(other)).delta)


def test_ledger_and_log_are_the_hospitals_and_state_is_the_studys(root: Path, study: Path, tmp_path: Path) -> None:
    second = study_file(tmp_path / "second.yaml", seed=4)
    folder = hospital(tmp_path / "north", root, study, second)
    for path in (study, second):
        site = opened(folder, path)
        site.train(ask(site))
        assert (folder.state_folder(site.fingerprint) / "release.npz").exists()
    assert steps(folder) == 4
    assert events(folder) == ["created", "approved", "approved", *["trained", "released"] * 2]
    assert not (folder.path / "release.npz").exists()
    charged = {row.facts["study"] for row in folder.ledger().rows() if row.kind == "reserved"}
    assert charged == {load(study).fingerprint, load(second).fingerprint}


def test_what_was_never_approved_is_refused_logged_and_costs_nothing(root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root)
    for asked in (load(study).fingerprint, "", "x" * 10_000_000, "../../etc", "A" * 64):
        assert refused(folder, asked) == "study_not_approved"
    logged = audit_log.read(folder.audit_file)[1:]
    assert [event["study"] for event in logged] == [load(study).fingerprint, "", "", "", ""]
    assert {event["code"] for event in logged} == {"study_not_approved"}
    assert steps(folder) == 0
    assert sorted(path.name for path in (folder.path / "studies").iterdir()) == []


def test_a_revoked_study_is_refused_from_the_next_message_on(root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root, study)
    site = opened(folder, study)
    site.train(ask(site))
    approvals.revoke(folder, site.fingerprint[:8], who="Dr. B", why="enough")
    assert refused(folder, site.fingerprint) == "study_not_approved"
    approve(folder, propose(folder, study), who="Dr. B", why="on second thoughts")
    again = opened(folder, study)
    again.train(ask(again, 2))
    assert [event for event in events(folder) if event in ("approved", "revoked", "refused")] == [
        "approved", "revoked", "refused", "approved"]


@pytest.mark.parametrize("harm", [
    lambda path: path.write_text(path.read_text().replace("noise_multiplier: 1.0", "noise_multiplier: 0.01")),
    lambda path: path.write_text("{"), lambda path: path.unlink(),
])  # fmt: skip
def test_an_approved_copy_that_was_altered_is_no_approval(harm: Any, root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root, study)
    fingerprint = load(study).fingerprint
    harm(folder.study_file(fingerprint))
    assert refused(folder, fingerprint) == "study_not_approved"


def test_nothing_changed_gives_the_same_object_and_a_change_another(root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root, study)
    site = opened(folder, study)
    assert opened(folder, study) is site
    set_policy(folder, maximum_rounds=2)
    with pytest.raises(SiteRefusal, match=r"federation\.rounds=3 is above maximum_rounds=2") as caught:
        opened(folder, study).train(ask(site))
    assert caught.value.code == "against_policy"
    assert steps(folder) == 0
    set_policy(folder, maximum_rounds=3)
    changed = opened(folder, study)
    assert changed is not site
    assert changed.bench is site.bench
    changed.train(ask(changed))


def test_who_opts_out_between_rounds_is_not_used_from_the_next_round_on(
    root: Path, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedimaging.site")
    folder = hospital(tmp_path / "north", root, study)
    site = opened(folder, study)
    site.train(ask(site))
    gone = str(site.train_records.patient_ids[0])
    pixels = site.train_records.dataset.images[site.train_records.rows[0]].tobytes()
    assert any(pixels in path.read_bytes() for path in folder.store.rglob("images.npy"))
    folder.opt_out_file.write_text(f"{gone}\nsomebody else\n")
    after = opened(folder, study)
    assert gone not in set(after.train_records.patient_ids) | set(after.test_records.patient_ids)
    assert len(after.train_records) == len(site.train_records) - 1
    assert after.plan == site.plan  # no number that leaves follows who opted out
    after.train(ask(after, 2))
    assert not any(pixels in path.read_bytes() for path in folder.store.rglob("images.npy"))
    assert gone not in "".join(path.read_text() for path in folder.store.rglob("*.json"))
    assert events(folder)[-5:] == ["trained", "released", "left_out_changed", "trained", "released"]
    assert gone not in folder.audit_file.read_text()
    line = next(event for event in audit_log.read(folder.audit_file) if event["event"] == "left_out_changed")
    assert line.keys() == {"sequence", "time", "version", "event", "previous", "hash"}  # no number, no name
    assert "north: 1 patients are left out from now on (1 opted out, 0 without consent)" in caplog.text
    assert opened(folder, study) is after
    folder.opt_out_file.write_text("")
    assert gone in set(opened(folder, study).train_records.patient_ids)
    assert events(folder).count("left_out_changed") == 2


def test_a_full_disk_refuses_before_anything_is_charged_and_charges_a_round_that_it_cuts_short_once(
    root: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, free = hospital(tmp_path / "north", root, study, release_evaluation="metrics"), [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    site = opened(folder, study)
    for work in (lambda: site.train(ask(site)), lambda: site.evaluate(ask(site), final=False)):
        with pytest.raises(SiteRefusal) as caught:
            work()
        assert caught.value.code == "disk_full"
    assert steps(folder) == 0

    def fill(*_: Any) -> None:
        free[0] = 0
        raise RunError("no space left")

    free[0] = 10**9
    with monkeypatch.context() as patch:
        patch.setattr(KeptUpdate, "keep", fill)
        for _ in range(3):  # it is asked again and again
            with pytest.raises(SiteRefusal) as caught:
                site.train(ask(site))
            assert caught.value.code == "disk_full"
    assert steps(folder) == 2
    free[0] = 10**9
    site.train(ask(site))
    assert steps(folder) == 4

    def fail(*_: Any) -> None:
        raise RunError("another fault")

    monkeypatch.setattr(KeptUpdate, "keep", fail)
    with pytest.raises(RunError, match="another fault"):
        site.train(ask(site, 2))


def test_consent_comes_before_any_file_is_opened(study: Path, tmp_path: Path) -> None:
    root = pictures(tmp_path / "data", consent=["no" if number in (0, 12) else "yes" for number in range(30)])
    (root / "0.png").write_bytes(b"not to be opened")
    folder = hospital(tmp_path / "north", root, study, consent_column="consent")
    assert {"p00", "p12"}.isdisjoint(opened(folder, study).train_records.patient_ids)
    set_policy(folder, consent_column="consents")
    with pytest.raises(DataError, match="did you mean 'consent'"):
        opened(folder, study)
    assert audit_log.read(folder.audit_file)[-1]["code"] == "data"


def test_a_held_out_hospital_tests_with_all_its_patients_and_trains_nothing(root: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study.yaml", hospitals={"sites": ["south", "west"], "held_out": ["north"]})
    folder = hospital(tmp_path / "north", root, path, release_evaluation="metrics")
    site = opened(folder, path)
    assert (site.plan, len(site.train_records), len(site.test_records)) == (None, 0, 10)
    with pytest.raises(SiteRefusal) as caught:
        site.train(ask(site))
    assert caught.value.code == "no_training_data"
    assert site.evaluate(ask(site), final=True).n_patients == 10
    assert steps(folder) == 0


def test_a_round_is_evaluated_with_one_model_only(root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root, study, release_evaluation="metrics")
    site = opened(folder, study)
    first = site.evaluate(ask(site, 1), final=False)
    assert site.evaluate(ask(site, 1), final=True).metrics == first.metrics
    site.evaluate(ask(site, 2, shift=0.1), final=False)
    for round, shift in ((2, 0.2), (1, 0.0)):
        with pytest.raises(SiteRefusal) as caught:
            site.evaluate(ask(site, round, shift), final=False)
        assert caught.value.code == "replayed_round"
    assert events(folder).count("evaluated") == 3


def test_a_noised_evaluation_too_is_of_one_model_a_round_and_charged_once(root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root, study, release_evaluation="noised")
    site = opened(folder, study)
    site.evaluate(ask(site, 1), final=False)
    for shift in (0.1, 0.2, 0.3):
        with pytest.raises(SiteRefusal) as caught:
            site.evaluate(ask(site, 1, shift), final=False)
        assert caught.value.code == "replayed_round"
    site.evaluate(ask(site, 1), final=False)
    assert steps(folder) == 1


def test_weights_that_make_an_update_too_long_cost_one_round_however_often_they_come(root: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study.yaml", training={"weight_decay": 0.5})
    folder = hospital(tmp_path / "north", root, path)
    site = opened(folder, path)
    for shift, code in ((1e6, "update_too_large"), (1e6, "update_too_large"), (2e6, "replayed_round"), (0.0, "replayed_round")):
        with pytest.raises(SiteRefusal) as caught:
            site.train(ask(site, 1, shift))
        assert caught.value.code == code
        assert steps(folder) == 2
    assert "released" not in events(folder)
    assert "released" not in [row.kind for row in folder.ledger().rows()]
    set_policy(folder, maximum_update_norm=1e9)
    assert opened(folder, path).train(ask(site, 1, 1e6)).delta.size == site.bench.shared_size
    assert steps(folder) == 2


def test_a_hospital_that_the_study_does_not_name_takes_no_part(root: Path, study: Path, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"takes no part: hospitals\.sites='norht' is not known; did you mean 'north'"):
        hospital(tmp_path / "norht", root, study, name="norht")
    simulated = study_file(tmp_path / "simulated.yaml", hospitals={"sites": None})
    with pytest.raises(SiteError, match="the study simulates its hospitals"):
        hospital(tmp_path / "north", root, simulated)


def test_a_manifest_without_hospitals_is_all_this_ones(root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root)
    head, *rows = [line.split(",") for line in (root / "manifest.csv").read_text().splitlines()]
    whole = [head, *([str(root / image), *rest] for image, *rest in rows)]
    (tmp_path / "own.csv").write_text("\n".join(",".join([*row[:2], *row[3:]]) for row in whole))
    text = folder.settings_file.read_text()
    folder.settings_file.write_text(text.replace('"manifest.csv"', str(tmp_path / "own.csv")))
    approve(folder, propose(folder, study), who="Dr. A", why="test")
    assert len(opened(folder, study).train_records) == 24


def test_the_years_budget_holds_beside_the_total(root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root, study)
    site = opened(folder, study)
    site.train(ask(site))
    set_policy(folder, per_year={"epsilon": 0.5, "delta": 1e-4})
    with pytest.raises(BudgetExceeded, match="any 366 days"):
        opened(folder, study).train(ask(site, 2))
    assert steps(folder) == 2


def test_the_largest_message_follows_from_what_is_approved(root: Path, study: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root)
    least = largest_message(folder)
    approve(folder, propose(folder, study), who="Dr. A", why="test")
    site = opened(folder, study)
    assert largest_message(folder) == least + 4 * site.bench.shared_size
    approvals.revoke(folder, site.fingerprint, who="Dr. A", why="test")
    assert largest_message(folder) == least


def test_the_plan_that_was_shown_holds_until_the_study_is_approved_again(study: Path, tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    folder = hospital(tmp_path / "north", root, study)
    before = opened(folder, study)
    manifest = root / "manifest.csv"
    manifest.write_text("\n".join(line for line in manifest.read_text().splitlines() if not line.startswith("0.png")) + "\n")
    assert opened(folder, study).plan == before.plan
    approve(folder, propose(folder, study), who="Dr. A", why="data changed")
    after = opened(folder, study)
    assert before.plan is not None
    assert after.plan is not None
    assert asdict(before.plan) | {"n_units": 0, "sample_rate": 0} == asdict(after.plan) | {"n_units": 0, "sample_rate": 0}
    assert after.plan.n_units == before.plan.n_units - 1


def test_a_hospital_keeps_its_validation_patients_apart(study: Path, tmp_path: Path) -> None:
    own = pictures(tmp_path / "data")
    manifest = own / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("p03,north,0,train", "p03,north,0,validation"))
    site = opened(hospital(tmp_path / "north", own, study), study)
    assert site.validation_records.patient_ids.tolist() == ["p03"]
    assert "p03" not in {*site.train_records.patient_ids, *site.test_records.patient_ids}
