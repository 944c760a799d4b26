"""Every check refuses a run that fails it, with figure and limit; what the study set can be waived, the rest cannot."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fedimaging.cli import app
from fedimaging.errors import ReleaseError
from fedimaging.release.checks import calibration_error, parse_waivers, worst_external
from fedimaging.release.folder import release
from fedimaging.release.signing import make_signing_key
from fedimaging.study.load import load
from tests.release.conftest import KEY, PEOPLE, change


def set_limits(run: Path, **limits: Any) -> None:
    """As if the study had asked for these from the start: its fingerprint is changed everywhere it stands."""
    tree = yaml.safe_load((run / "study.yaml").read_text(encoding="utf-8"))
    tree["release"] = limits
    (run / "study.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    change(run / "report.json", lambda report: report.update(fingerprint=load(run / "study.yaml").fingerprint))
    change(run / "federation.json", lambda federation: federation["study"].update(release=tree["release"]))


def refused(run: Path, **waivers: str) -> str:
    with pytest.raises(ReleaseError) as caught:
        release(run, PEOPLE, KEY, waivers)
    assert not (run / "release").exists()
    assert [path.name for path in run.iterdir() if path.name.startswith(".release")] == []
    return str(caught.value)


@pytest.mark.parametrize(("limits", "name", "figure"), [
    ({"minimum_external": 1.0}, "external", "1"),
    ({"largest_subgroup_gap": 0.0}, "subgroup_gap", "0"),
    ({"largest_calibration_error": 0.0}, "calibration_error", "is not 0"),
    ({"audit": "required"}, "audit", "not measured is not consistent or no claim"),
])  # fmt: skip
def test_a_limit_of_the_study_refuses_and_a_waiver_is_kept(run: Path, limits: dict[str, Any], name: str, figure: str) -> None:
    set_limits(run, **limits)
    said = refused(run)
    assert f"\n  {name}: " in said
    assert figure in said
    assert "one check fails" in said
    assert f"--waive {name}: a waiver needs a reason" in refused(run, **{name: " "})
    folder = release(run, PEOPLE, KEY, {name: "seen by the board on Monday"})
    check = next(c for c in json.loads((folder / "manifest.json").read_text())["checks"] if c["name"] == name)
    assert not check["passed"]
    assert (check["waived_by"], check["waiver_reason"]) == (PEOPLE.approved_by, "seen by the board on Monday")
    for card in ("card.md", "card.html"):
        text = (folder / card).read_text(encoding="utf-8")
        assert f"Released although a check failed: {name}" in text
        assert f"Waived by {PEOPLE.approved_by}: seen by the board on Monday" in text


def test_what_was_not_measured_fails_a_check(run: Path) -> None:
    set_limits(run, minimum_external=0.1, largest_subgroup_gap=0.9, largest_calibration_error=0.9)
    change(run / "report.json", lambda report: report.update(held_out={}, group_gaps={}, calibration=None))
    said = refused(run)
    for name, limit in (("external", 0.1), ("subgroup_gap", 0.9), ("calibration_error", 0.9)):
        assert f"{name}: not measured is not {limit:.4f}" in said


def test_calibration_counts_after_the_temperature() -> None:
    def tables(value: float) -> dict[str, Any]:
        return {"test": {"ece": {"value": value}}}

    assert calibration_error({"calibration": {"before": tables(0.3), "after": None}}) == 0.3
    assert calibration_error({"calibration": {"before": tables(0.3), "after": tables(0.1)}}) == 0.1
    assert calibration_error({"calibration": {"before": {"test": None}, "after": None}}) is None


def test_all_failed_checks_are_listed_at_once(run: Path) -> None:
    set_limits(run, minimum_external=1.0, largest_subgroup_gap=0.0, audit="required")
    said = refused(run, audit="no time")
    assert "2 checks fail" in said
    assert "external: 0." in said
    assert "subgroup_gap: 0." in said


@pytest.mark.parametrize(("verdict", "required", "passes"), [
    ("consistent", True, True), ("inconclusive", True, False), ("inconclusive", False, True), ("violation", False, False),
])  # fmt: skip
def test_the_verdict_of_an_audit_counts(run: Path, verdict: str, required: bool, passes: bool) -> None:
    set_limits(run, audit="required" if required else "optional")
    fingerprint = load(run / "study.yaml").fingerprint
    (run / "audit.json").write_text(json.dumps({"run": fingerprint, "verdict": verdict, "attacks": []}), encoding="utf-8")
    if passes:
        assert verdict in (release(run, PEOPLE, KEY, {}) / "card.md").read_text(encoding="utf-8")
        change(run / "audit.json", lambda tree: tree.update(run="0" * 64))
        with pytest.raises(ReleaseError, match="audit: not measured"):
            release(run, PEOPLE, KEY, {}, run / "another")
    else:
        assert f"audit: {verdict} is not" in refused(run)


def altered_ledger(run: Path) -> None:
    with sqlite3.connect(run / "sites" / "north" / "ledger.sqlite") as database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute("UPDATE events SET time = '2020-01-01T00:00:00+00:00' WHERE seq = 2")
    database.close()


def no_ledger(run: Path) -> None:
    (run / "sites" / "south" / "ledger.sqlite").unlink()


def less_told(run: Path) -> None:
    change(run / "report.json", lambda report: report["sites"]["north"]["privacy"].update(epsilon=1.0))


def other_data(run: Path) -> None:
    change(run / "report.json", lambda report: report.update(data_fingerprint="0" * 64))


def fewer_rounds(run: Path) -> None:
    change(run / "report.json", lambda report: report["rounds"].pop())


def kept_layers(run: Path) -> None:
    tree = yaml.safe_load((run / "study.yaml").read_text(encoding="utf-8"))
    tree["federation"]["local_parameters"] = "head"
    (run / "study.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.mark.parametrize(("break_it", "name", "said"), [
    (altered_ledger, "ledgers", "north: ledger event 2 was altered"), (no_ledger, "ledgers", "south: the ledger"),
    (less_told, "privacy_claim", "the report 1.0000"), (other_data, "fingerprints", "another data"),
    (fewer_rounds, "finished", "2 is not 3"), (kept_layers, "model", "without its head layers"),
])  # fmt: skip
def test_what_always_holds_cannot_be_waived(run: Path, break_it: Any, name: str, said: str) -> None:
    break_it(run)
    text = refused(run)
    assert f"\n  {name}: " in text
    assert said in text
    assert f"--waive {name}: this check cannot be waived" in refused(run, **{name: "never mind"})


def test_waivers_of_nothing_are_refused(run: Path) -> None:
    assert "did you mean 'external'" in refused(run, externel="typing error")
    assert "the check passed" in refused(run, external="to be sure")
    with pytest.raises(ReleaseError, match="NAME=REASON"):
        parse_waivers(["external"])


def test_an_unfinished_run_is_refused(run: Path) -> None:
    (run / "report.json").unlink()
    assert "no finished run" in refused(run)


def test_the_worst_of_the_hospitals_that_never_trained_counts() -> None:
    def interval(value: float | None, n: int = 30) -> dict[str, Any]:
        return {"value": value, "low": None, "high": None, "n_patients": n}

    assert worst_external({}, "auroc", 10) is None
    held_out = {"held_out": {"auroc": interval(0.8)}}
    assert worst_external(held_out, "auroc", 10) == 0.8
    assert worst_external({"held_out": {"auroc": interval(0.8, 9)}}, "auroc", 10) is None
    left_out = {name: {"external": one} for name, one in {"a": interval(0.7), "b": interval(0.6, 9), "c": interval(None)}.items()}
    left_out["d"] = {"external": None}
    assert worst_external(held_out | {"leave_one_out": {"hospitals": left_out}}, "auroc", 10) == 0.7


def test_the_command_refuses_with_exit_code_2_and_releases(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_signing_key(tmp_path / "key")
    command = ["release", str(run), "--approved-by", "Ada", "--role", "head", "--reason", "ready", "--key", str(tmp_path / "key")]
    set_limits(run, minimum_external=1.0)
    answer = CliRunner().invoke(app, command)
    assert isinstance(answer.exception, ReleaseError)
    assert CliRunner().invoke(app, [*command, "--waive", "external=first try"]).exit_code == 0
    answer = CliRunner().invoke(app, ["verify", str(run / "release"), "--public-key", str(tmp_path / "key.pub")])
    assert "in order: " in answer.stdout
    assert "released by Ada (head)" in answer.stdout
    assert isinstance(CliRunner().invoke(app, command).exception, ReleaseError)  # never over an older one
