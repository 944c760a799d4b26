"""What leaves of a calibration in each mode of the policy, and what it costs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedimaging.errors import BudgetExceeded, SiteRefusal
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.tempering import SENSITIVITY, tempering_totals
from fedimaging.runs import hospitals
from fedimaging.site import audit_log
from fedimaging.site import site as site_module
from fedimaging.site.hospital import open_hospital_site
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site, TrainInstruction
from fedimaging.study.load import load
from fedimaging.study.schema import Study
from fedimaging.training.evaluate import evaluate

from .making import hospital, pictures, set_policy, study_file

MakeStudy = Callable[..., Study]
ASKED = (
    "evaluation.calibration=temperature", "data.split={test: 0.2, validation: 0.4, seed: 0}", "data.phantoms.patients=60",
    "privacy.engine=loop",
)


def opened(study: Study, folder: Path, place: int = 0) -> Site:
    hospitals.make_federation(study, hospitals.load_data(study), folder, "cpu").save()
    return open_simulated_site(folder, place)


def ask(site: Site, round: int = 2, shift: float = 0.0) -> TrainInstruction:
    return TrainInstruction(site.fingerprint, round, site.bench.initial + np.float32(shift))


def charges(site: Site) -> list[Charge]:
    path = site.folder / "ledger.sqlite"
    return Ledger(path).charges() if path.exists() else []


def refused(site: Site, round: int = 2) -> str:
    with pytest.raises(SiteRefusal) as caught:
        site.calibrate(ask(site, round))
    return caught.value.code


def exact_sums(site: Site, weights: np.ndarray) -> np.ndarray:
    arrays = evaluate(site.bench, weights, site.validation_records, final=False).arrays
    return tempering_totals(arrays["scores"], arrays["labels"], arrays["patient"], "binary").arrays["tempering"]


def test_a_noised_calibration_is_charged_once_a_question(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*ASKED), tmp_path)
    first = site.calibrate(ask(site))
    assert charges(site) == [Charge(4.0, 1.0, 1, "patient")]
    assert first.noise_std == 4.0 * SENSITIVITY
    assert site.calibrate(ask(site)).sums.tolist() == first.sums.tolist()
    assert len(charges(site)) == 1  # asked again: the same bytes, at no cost
    noise = first.sums - exact_sums(site, site.bench.initial)
    other = site.calibrate(ask(site, shift=1e-3))
    assert len(charges(site)) == 2
    assert not np.allclose(other.sums - exact_sums(site, site.bench.initial + np.float32(1e-3)), noise, atol=1.0)
    spent = site.privacy_spent()
    assert spent is not None
    assert (spent.calibrations, spent.evaluations, spent.steps, spent.unit) == (2, 0, 2, "patient")


def test_the_charge_is_on_the_disk_before_the_first_validation_patient_is_read(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = opened(tiny_study(*ASKED), tmp_path)

    def dies(*_: object, **__: object) -> None:
        assert len(charges(site)) == 1
        raise MemoryError

    monkeypatch.setattr(site_module, "evaluate", dies)
    with pytest.raises(MemoryError):
        site.calibrate(ask(site))
    assert len(charges(site)) == 1  # a crash counts as spent


def test_a_budget_that_does_not_allow_it_refuses_it(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = replace(opened(tiny_study(*ASKED), tmp_path), budget=Budget(0.5, 1e-5))
    with pytest.raises(BudgetExceeded):
        site.calibrate(ask(site))
    assert charges(site) == []
    assert not (site.folder / "calibration.npz").exists()


def test_one_patient_moves_what_leaves_by_the_sensitivity_alone(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*ASKED), tmp_path / "a")
    everyone, patients = site.calibrate(ask(site)).sums, site.validation_records.patient_ids
    fewer = opened(tiny_study(*ASKED), tmp_path / "b")  # the same simulated noise, one patient less
    fewer.validation_records = replace(fewer.validation_records, rows=fewer.validation_records.rows[patients != patients[0]])
    assert 0 < np.linalg.norm(everyone - fewer.calibrate(ask(fewer)).sums) <= SENSITIVITY + 1e-4


def test_without_privacy_the_sums_are_exact_and_nothing_is_charged(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*ASKED[:3], "privacy=null"), tmp_path)
    found = site.calibrate(ask(site))
    np.testing.assert_allclose(found.sums, exact_sums(site, site.bench.initial), rtol=1e-5, atol=1e-6)
    assert (found.noise_std, charges(site)) == (0.0, [])


def test_noise_can_be_asked_for_without_private_training(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*ASKED[:3], "privacy=null", "policy.release_calibration=noised"), tmp_path)
    assert site.calibrate(ask(site)).noise_std == 12.0
    assert charges(site) == [Charge(4.0, 1.0, 1, "patient")]


def test_a_hospital_without_validation_patients_releases_noise(tiny_study: MakeStudy, tmp_path: Path) -> None:
    site = opened(tiny_study(*ASKED), tmp_path)
    site.validation_records = replace(site.validation_records, rows=site.validation_records.rows[:0])
    assert site.calibrate(ask(site)).sums.std() == pytest.approx(12.0, rel=0.7)


@pytest.mark.parametrize("study", [("policy.release_calibration=none",), ("evaluation.calibration=none",)])
def test_what_the_policy_forbids_or_the_study_does_not_ask_for_stays(
    study: tuple[str, ...], tiny_study: MakeStudy, tmp_path: Path
) -> None:
    assert refused(opened(tiny_study(*ASKED, *study), tmp_path)) == "calibration_not_released"


def test_only_the_final_model_is_calibrated(tiny_study: MakeStudy, tmp_path: Path) -> None:
    assert refused(opened(tiny_study(*ASKED), tmp_path), round=1) == "wrong_round"


@pytest.fixture
def real(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of pictures, two of whose patients at north validate, and a study that asks for a temperature."""
    root = pictures(tmp_path / "data")
    manifest = root / "manifest.csv"
    rows = manifest.read_text().replace("p03,north,0,train", "p03,north,0,validation")
    manifest.write_text(rows.replace("p12,north,1,train", "p12,north,1,validation"))
    return root, study_file(tmp_path / "study.yaml", evaluation={"calibration": "temperature", "resamples": 100})


def test_a_real_hospital_releases_nothing_until_its_policy_says_so(real: tuple[Path, Path], tmp_path: Path) -> None:
    root, path = real
    folder = hospital(tmp_path / "north", root, path)
    site = open_hospital_site(folder, load(path).fingerprint)
    assert refused(site, round=3) == "calibration_not_released"
    set_policy(folder, release_calibration="noised")
    site = open_hospital_site(folder, load(path).fingerprint)
    first = site.calibrate(ask(site, 3))
    with pytest.raises(SiteRefusal) as caught:
        site.calibrate(ask(site, 3, shift=0.1))  # other weights
    assert caught.value.code == "replayed_round"
    assert site.calibrate(ask(site, 3)).sums.tolist() == first.sums.tolist()
    assert folder.ledger().charges() == [Charge(4.0, 1.0, 1, "patient")]
    last = audit_log.read(folder.audit_file)[-1]
    assert (last["event"], last["release"], last["round"], last["bytes"]) == ("calibrated", "noised", 3, 40)


def test_a_real_hospitals_exact_sums_are_those_of_a_simulation(real: tuple[Path, Path], tmp_path: Path) -> None:
    root, path = real
    folder = hospital(tmp_path / "north", root, path, release_calibration="exact")
    site = open_hospital_site(folder, load(path).fingerprint)
    study = load(path, [f"data.root={root}", "policy.release_calibration=exact"])
    simulated = opened(study, tmp_path / "run")
    assert site.calibrate(ask(site, 3)).sums.tolist() == simulated.calibrate(ask(simulated, 3)).sums.tolist()
    assert folder.ledger().charges() == []
