"""A new site folder: complete, private, never over another, and nothing of it left where it cannot be made."""

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedimaging.errors import RunError, SiteError
from fedimaging.files import held
from fedimaging.keys import fingerprint
from fedimaging.privacy.budget import Budget
from fedimaging.privacy.ledger import Ledger
from fedimaging.site import audit_log
from fedimaging.site.folder import SiteFolder
from fedimaging.site.init import make_site_folder, replace_key
from fedimaging.site.policy import SitePolicy

PEM = """-----BEGIN CERTIFICATE-----
MIIBdDCCARmgAwIBAgIUYw==
-----END CERTIFICATE-----
"""


def made(path: Path, **given: Any) -> SiteFolder:
    return make_site_folder(path, **{"name": "north", "server": "fed.example.org:8443", **given})


def test_everything_is_there_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "a" / "north", contact="Dr. Ö. \"IT\" Müller: $x")
    assert (folder.settings.name, folder.settings.server) == ("north", "fed.example.org:8443")
    assert folder.settings.contact == "Dr. Ö. \"IT\" Müller: $x"
    assert folder.opt_out == frozenset()
    assert folder.ledger().charges() == []
    assert [e["event"] for e in audit_log.read(folder.audit_file)] == ["created"]
    for private in (folder.key_file, folder.ledger_file, folder.audit_file, folder.approvals_file):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_the_key_is_a_p384_key_and_its_fingerprint_is_what_openssl_says(tmp_path: Path) -> None:
    folder = made(tmp_path / "north")
    key = load_pem_private_key(folder.key_file.read_bytes(), password=None)
    assert isinstance(key, EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    told = fingerprint(folder.public_key_file.read_text())
    done = subprocess.run(
        f"openssl pkey -pubin -in '{folder.public_key_file}' -outform DER | openssl dgst -sha256 -r", shell=True,
        capture_output=True, text=True, check=False,
    )
    if done.stdout:
        assert done.stdout.startswith(told.replace(" ", ""))
    assert told != fingerprint(made(tmp_path / "south").public_key_file.read_text())


def test_a_key_that_was_seen_is_replaced_but_not_under_a_running_node(tmp_path: Path) -> None:
    folder = made(tmp_path / "north")
    old = folder.public_key_file.read_text()
    replace_key(folder)
    new = folder.public_key_file.read_text()
    assert new != old
    assert stat.S_IMODE(folder.key_file.stat().st_mode) == 0o600
    assert audit_log.read(folder.audit_file)[-1]["key"] == fingerprint(new)
    with held(folder.run_lock), pytest.raises(RunError, match="a node runs in this folder"):
        replace_key(folder)
    assert folder.public_key_file.read_text() == new


def test_the_policy_that_is_written_says_every_rule_and_is_the_default(tmp_path: Path) -> None:
    folder = made(tmp_path / "north")
    assert yaml.safe_load(folder.policy_file.read_text()).keys() == SitePolicy.model_fields.keys()
    assert folder.policy == SitePolicy()
    assert folder.policy.budgets() == (Budget(16.0, 1e-5), Budget(8.0, 1e-5, 366))


@pytest.mark.parametrize("name", ["configs/sites/cautious.yaml", "configs/sites/demonstration.yaml"])
def test_the_policies_in_configs_are_complete(name: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "north")
    folder.policy_file.write_text((Path(__file__).parents[2] / name).read_text())
    assert yaml.safe_load(folder.policy_file.read_text()).keys() == SitePolicy.model_fields.keys()
    assert folder.policy != SitePolicy()


def test_an_empty_folder_is_filled_and_another_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()  # as a container mounts one
    folder = made(tmp_path / "volume")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(SiteError, match=r"is there already; a site folder is never overwritten"):
        made(tmp_path / "volume")
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("given", "told"), [
    ({"server": "fed.example.org"}, "server='fed.example.org': must be host:port"),
    ({"server": "https://fed:8443"}, "must be host:port"), ({"server": "fed:0"}, "must be host:port"),
    ({"name": ""}, "name='': must be 1 to 64 letters"), ({"name": "a\nb"}, "must be 1 to 64 letters"),
    ({"contact": "a\nb"}, "must be one line"),
    ({"ca": Path("nowhere.crt")}, "'nowhere.crt' cannot be read: No such file"),
    ({"ca": Path(__file__)}, "holds no certificate in PEM form; ask the operator"),
], ids=str)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_nothing_is_written(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=told):
        made(tmp_path / "north", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Ledger, "create", full)
    for name in ("volume", "new"):
        with pytest.raises(SiteError, match="no space left"):
            made(tmp_path / name)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["volume"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(SiteError, match="cannot write"):
        made(tmp_path / "file" / "site")


def test_settings_policy_and_list_are_read_again_when_they_change(tmp_path: Path) -> None:
    folder = made(tmp_path / "north")
    first = folder.policy
    assert folder.policy is first
    text = folder.policy_file.read_text()
    folder.policy_file.write_text(text.replace("minimum_patients: 20", "minimum_patients: 21"))
    assert folder.policy.minimum_patients == 21
    folder.opt_out_file.write_text("\ufeff# 7 May\n p1 \n\np2\n")
    assert folder.opt_out == {"p1", "p2"}
    folder.opt_out_file.unlink()
    with pytest.raises(SiteError, match=r"opt-out list .* cannot be read: No such file .*; restore it"):
        _ = folder.opt_out


@pytest.mark.parametrize(("old", "new", "told"), [
    ("minimum_patients: 20", "minimum_patient: 20", "minimum_patient is not a known key; did you mean 'minimum_patients'"),
    ("epsilon: 16.0", "epsilonn: 16.0", "in_total.epsilonn is not a known key; did you mean 'epsilon'"),
    ("unit: patient", "unit: person", "unit='person': input should be 'patient' or 'any'"),
    ("release_evaluation: none", "release_evaluation: scores", "is for simulations: scores of real patients"),
    ("train_hours: []", "train_hours: [at night]", "'at night' must be like '20:00-06:00'"),
    ("unit: patient", "unit: patient\nunit: any", "key 'unit' is given twice"),
    ("tasks: null", "tasks: [binery]", r"tasks\.0='binery': input should be 'binary'"),
])  # fmt: skip
def test_a_policy_that_makes_no_sense_is_told(old: str, new: str, told: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "north")
    folder.policy_file.write_text(folder.policy_file.read_text().replace(old, new))
    with pytest.raises(SiteError, match=told):
        SiteFolder.open(folder.path)


def test_what_is_no_site_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"is no site folder .*fedimaging site init"):
        SiteFolder.open(tmp_path)
    folder = made(tmp_path / "north")
    os.chmod(folder.settings_file, 0o644)
    folder.settings_file.write_text("name: x")
    with pytest.raises(SiteError, match=r"server is missing; add it\. data is missing; add it"):
        SiteFolder.open(folder.path)
