"""The demonstration's scans and study fit each other. (Its commands are run by the slow test of the image.)"""

import csv
from pathlib import Path

import yaml

from fedimaging.data.spec import PhantomSpec
from fedimaging.study.load import load
from tests.container.scripts import script


def test_each_hospital_has_its_own_scans_and_manifest(tmp_path: Path) -> None:
    demonstration = script("demonstration")
    sites = demonstration.write_scans(tmp_path, PhantomSpec(patients=12, hospitals=2, scans_per_patient=(1, 2)))
    assert sites == ["hospital_01", "hospital_02"]
    patients = []
    for site in sites:
        with (tmp_path / site / "manifest.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["site"] for row in rows} == {site}
        assert {row["image"] for row in rows} == {path.name for path in (tmp_path / site).glob("*.png")}
        patients.append({row["patient_id"] for row in rows})
    assert len(patients[0] | patients[1]) == len(patients[0]) + len(patients[1]) == 12


def test_the_study_is_valid_and_needs_nobodys_data_but_the_hospitals(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(script("demonstration").study_of(["a", "b", "c"], 7)))
    study = load(tmp_path / "study.yaml")
    assert study.federation.rounds == 7
    assert list(study.hospitals.sites or ()) == ["a", "b", "c"]
    assert study.data.phantoms is None
