import json
import stat
from pathlib import Path

import pytest
import yaml

from fedimaging.errors import RunError
from fedimaging.keys import fingerprint, make_key
from fedimaging.runs.server_folder import ServerFolder, ServerSettings
from fedimaging.site.audit_log import read


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", ServerSettings(host="127.0.0.1"))


def key(folder: ServerFolder, name: str) -> Path:
    make_key(folder.path.parent / f"{name}.key", folder.path.parent / f"{name}.pub")
    return folder.path.parent / f"{name}.pub"


def test_a_new_folder_keeps_its_secrets_to_this_user(folder: ServerFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    for name in ("ca.key", "server.key", "superexec.secret"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600
    assert len(folder.secret) == 32
    assert ServerFolder.open(folder.path).settings == ServerSettings(host="127.0.0.1", port=8443)
    assert folder.sites() == {}


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    with pytest.raises(RunError, match="not empty"):
        ServerFolder.create(tmp_path, ServerSettings(host="x"))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_hospital_is_its_key(folder: ServerFolder) -> None:
    public = key(folder, "a")
    assert folder.add_site("north", public, 120) == fingerprint(public.read_text())
    assert folder.sites()["north"].patients == 120
    folder.add_site("north", public, 130)  # the same again: its number changed
    assert folder.sites()["north"].patients == 130
    with pytest.raises(RunError, match="has the key already that 'north' has"):
        folder.add_site("south", public, None)
    with pytest.raises(RunError, match="has another key already"):
        folder.add_site("north", key(folder, "b"), None)
    assert set(folder.sites()) == {"north"}


def test_a_hospital_that_was_removed_can_come_with_another_key(folder: ServerFolder) -> None:
    folder.add_site("north", key(folder, "a"), None)
    folder.remove_site("north")
    folder.add_site("north", key(folder, "b"), None)
    events = [(event["event"], event.get("site")) for event in read(folder.path / "audit.jsonl")]
    assert events == [("created", None), ("site_added", "north"), ("site_removed", "north"), ("site_added", "north")]
    with pytest.raises(RunError, match="did you mean 'north'"):
        folder.remove_site("nort")


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a\nb", "x" * 65, "é"])
def test_a_name_that_could_be_misread_is_refused(name: str, folder: ServerFolder) -> None:
    with pytest.raises(RunError, match="NAME="):
        folder.add_site(name, key(folder, "a"), None)
    assert folder.sites() == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"port": 0}, "port"), ({"portt": 8443}, "portt"), ({"maximum_update_norm": -1}, "maximum_update_norm")],
)
def test_a_setting_that_cannot_be_is_named(change: dict[str, object], words: str, folder: ServerFolder) -> None:
    (folder.path / "server.yaml").write_text(yaml.safe_dump({"host": "x", **change}))
    with pytest.raises(RunError, match=words):
        ServerFolder.open(folder.path)


def test_what_is_damaged_is_said(folder: ServerFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no server's folder"):
        ServerFolder.open(tmp_path)
    (folder.path / "superexec.secret").unlink()
    with pytest.raises(RunError, match="restore it"):
        _ = folder.secret
    for text in ("", "[]", json.dumps({"north": {"key": 1}})):
        (folder.path / "sites.json").write_text(text)
        with pytest.raises(RunError, match="restore it"):
            folder.sites()


def test_a_new_certificate_is_of_the_same_authority(folder: ServerFolder) -> None:
    before = (folder.ca.read_bytes(), folder.certificate.read_bytes(), folder.key.read_bytes())
    folder.renew()
    assert folder.ca.read_bytes() == before[0]
    assert folder.certificate.read_bytes() != before[1]
    assert folder.key.read_bytes() != before[2]
