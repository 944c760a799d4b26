"""`fedimaging site …` as a person types it: what it prints, how it ends, and one clear error for whatever is wrong."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedimaging import cli
from fedimaging.keys import fingerprint
from fedimaging.site import audit_log
from fedimaging.study.load import load
from tests.site.making import hospital, pictures, study_file


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a person gets who types `fedimaging site WORDS`, with nobody to answer questions."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedimaging", "site", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return Ended(int(end.value.code or 0), told.out, told.err)

    return run


def one_error(ended: Ended) -> str:
    assert ended.code == 2
    [line] = [line for line in ended.err.splitlines() if line]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "data")


def test_init_tells_the_operators_part_and_is_done_once(typed: Any, tmp_path: Path) -> None:
    first = typed("init", tmp_path / "north", "--name", "north", "--server", "localhost:8443")
    assert first.code == 0
    public = (tmp_path / "north" / "keys" / "node.pub").read_text()
    assert public in first.out
    assert fingerprint(public) in first.out
    assert "PRIVATE" not in first.out
    assert "put the authority's certificate into it" in first.out
    assert typed("key", tmp_path / "north").out in first.out
    again = typed("init", tmp_path / "north", "--name", "north", "--server", "localhost:8443")
    assert "is there already; a site folder is never overwritten" in one_error(again)


def test_a_study_from_approval_to_report(typed: Any, root: Path, tmp_path: Path) -> None:
    folder, study = hospital(tmp_path / "north", root).path, study_file(tmp_path / "study.yaml")
    asked = typed("approve", folder, study)
    assert "Budget" in asked.out
    assert one_error(asked) == "--name is missing; say who decides, and why."
    assert one_error(typed("approve", folder, study, "--name", "Dr. A")) == "--reason is missing; say who decides, and why."
    unasked = typed("approve", folder, study, "--name", "Dr. A", "--reason", "vote 7")
    assert one_error(unasked) == "nothing was approved; say --yes where nobody can be asked."
    assert typed("studies", folder).out == "no study was ever approved\n"
    done = typed("approve", folder, study, "--name", "Dr. A", "--reason", "vote 7", "--yes")
    assert done.out.splitlines()[-1] == f"approved: study {load(study).fingerprint}"
    assert "approved by Dr. A" in typed("studies", folder).out
    assert "approved by Dr. A" in typed("status", folder).out
    assert json.loads(typed("status", folder, "--json").out)["studies"][0]["who"] == "Dr. A"
    assert typed("log", folder).out == "nothing has left this hospital\n"
    assert "approved  name tiny" in typed("log", folder, "--all").out
    assert typed("log", folder, "--verify").out.splitlines()[0] == f"audit.jsonl: {audit_log.verdict(folder / 'audit.jsonl')}"
    assert "charged: nothing" in typed("ledger", folder).out
    page = Path(typed("report", folder, "--out", tmp_path / "page.html").out.strip())
    assert "Privacy record of north" in page.read_text()
    assert "revoked: study" in typed("revoke", folder, load(study).fingerprint[:9], "--name", "B", "--reason", "over").out
    assert "REVOKED by B" in typed("studies", folder).out


def test_check_says_all_by_its_exit_code(typed: Any, root: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root).path
    ended = typed("check", folder)
    assert (ended.code, ended.err) == (2, "")
    assert ended.out.splitlines()[-1] == "not ready: authority, studies"
    found = json.loads(typed("check", folder, "--json").out)
    assert {one["what"] for one in found if one["ok"] is False} == {"authority", "studies"}


@pytest.mark.parametrize("command", [
    ["check"], ["approve", "s.yaml"], ["revoke", "f"], ["studies"], ["run"], ["status"], ["ledger"], ["log"], ["report"], ["key"],
], ids=lambda words: words[0])  # fmt: skip
def test_what_is_no_site_folder_is_one_error_and_is_left_alone(command: list[str], typed: Any, tmp_path: Path) -> None:
    ended = typed(command[0], tmp_path, *command[1:])
    told = ended.out if command[0] == "check" else one_error(ended)
    assert ended.code == 2
    assert "is no site folder (it has no site.yaml); make one with `fedimaging site init`" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "log", "ledger"])
def test_altered_records_end_in_words_not_in_a_traceback(command: str, typed: Any, root: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root, study_file(tmp_path / "study.yaml"))
    for path in (folder.audit_file, folder.approvals_file):
        path.write_text("{}\n")
    folder.ledger_file.write_bytes(b"x" * 9999)
    ended = typed(command, folder.path)
    if command == "ledger":
        assert "cannot be read as a database" in one_error(ended)
    else:
        assert ended.code == 0
        assert "NOT IN ORDER" in ended.out
    assert "breaks the hash chain" in one_error(typed("log", folder.path, "--verify"))


def test_a_study_against_the_policy_leaves_no_trace(typed: Any, root: Path, tmp_path: Path) -> None:
    folder = hospital(tmp_path / "north", root, minimum_patients=99)
    study = study_file(tmp_path / "study.yaml")
    refused = typed("approve", folder.path, study, "--name", "A", "--reason", "b", "--yes")
    assert "8 patients train here, fewer than minimum_patients=99" in one_error(refused)
    assert not list((folder.path / "studies").iterdir())
    assert "does not exist" in one_error(typed("approve", folder.path, tmp_path / "none.yaml"))
