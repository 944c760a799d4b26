"""The preflight: a good set-up is ready; each fault has a cross of its own, and the rest is still looked at."""

import http.server
import os
import ssl
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from fedimaging.errors import RunError
from fedimaging.runs.certificates import issue, make_authority
from fedimaging.site.check import check
from fedimaging.site.check_machine import free_memory_gb
from fedimaging.site.finding import Finding, lines
from fedimaging.site.folder import SiteFolder

from .making import hospital, pictures, set_policy, study_file

AHEAD = {"seconds": 0.0}


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() - AHEAD["seconds"], usegmt=True)

    def log_message(self, *_: object) -> None:
        pass


class _Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        pass  # a client that does not trust us hangs up


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """host:port of something that speaks TLS as localhost, and its authority's certificate."""
    path = tmp_path_factory.mktemp("server")
    make_authority(path / "ca.crt", path / "ca.key")
    issue("localhost", path / "ca.crt", path / "ca.key", path / "s.crt", path / "s.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "s.crt", path / "s.key")
    with _Quiet(("localhost", 0), _Answer) as serving:
        serving.socket = context.wrap_socket(serving.socket, server_side=True)
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"localhost:{serving.server_address[1]}", path / "ca.crt"
        serving.shutdown()
        thread.join()


@pytest.fixture
def folder(root: Path, server: tuple[str, Path], tmp_path: Path) -> SiteFolder:
    made = hospital(tmp_path / "north", root, study_file(tmp_path / "study.yaml"))
    made.settings_file.write_text(made.settings_file.read_text().replace("localhost:8443", server[0]))
    (made.path / "ca.crt").write_bytes(server[1].read_bytes())
    return made


def found(folder: SiteFolder, registered: bool | None = True) -> dict[str, Finding]:
    return {one.what: one for one in check(folder.path, lambda _: Finding("registered", registered, "asked"))}


def bad(findings: dict[str, Finding]) -> list[str]:
    return [what for what, one in findings.items() if one.ok is False]


def test_a_good_set_up_is_ready_and_nothing_is_spent_or_released(folder: SiteFolder) -> None:
    before = (folder.ledger_file.read_bytes(), folder.audit_file.read_bytes())
    findings = found(folder)
    assert bad(findings) == []
    assert lines(list(findings.values()))[-1] == "ready"
    counts = "8 patients train, 2 test, 10 scans; label: 0 on 6, 1 on 4 scans; left out: 0 opted out"
    assert findings["data of tiny"].text.startswith(counts)
    assert "thrown away" in findings["one step of tiny"].text
    assert "valid for 109" in findings["server"].text
    assert findings["clock"].ok
    assert before == (folder.ledger_file.read_bytes(), folder.audit_file.read_bytes())
    assert not (folder.state_folder("x").parent.parent / "state").exists()


@pytest.mark.parametrize(("offset", "ok"), [(100.0, True), (-100.0, True), (600.0, False), (-600.0, False)])
def test_a_clock_that_is_off_is_told(offset: float, ok: bool, folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AHEAD, "seconds", offset)
    clock = found(folder)["clock"]
    assert clock.ok is ok
    if not ok:
        assert ("ahead of" if offset > 0 else "behind") in clock.text


def _spoil_settings(folder: SiteFolder, old: str, new: str) -> None:
    text = folder.settings_file.read_text()
    assert old in text
    folder.settings_file.write_text(text.replace(old, new))


def _alter(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new) if old else path.read_bytes() + new)


def _limit(name: str, epsilon: float, delta: float = 1e-4) -> dict[str, Any]:
    return {name: {"epsilon": epsilon, "delta": delta}}


def _other_authority(folder: SiteFolder) -> None:
    make_authority(folder.path / "ca.crt", folder.path / "x.key")


FAULTS: dict[str, tuple[Any, str, str]] = {
    "key for all": (lambda f: f.key_file.chmod(0o644), "key", "can be read by others (mode 644); chmod 600 it"),
    "no key": (lambda f: f.key_file.unlink(), "key", "cannot be read"),
    "device": (lambda f: _spoil_settings(f, "device: auto", "device: cuda:99"), "device", "device: cuda:99, which this machine"),
    "no ca": (lambda f: (f.path / "ca.crt").unlink(), "authority", "it is missing; the operator has it"),
    "no certificate": (lambda f: (f.path / "ca.crt").write_text("x"), "authority", "it cannot be used"),
    "another authority": (_other_authority, "server", "its certificate is not to be trusted"),
    "nobody there": (lambda f: _spoil_settings(f, f.settings.server, "localhost:1"), "server", "nothing listens there"),
    "no such host": (lambda f: _spoil_settings(f, f.settings.server, "nowhere.invalid:1"), "server", "this name is not known"),
    "altered ledger": (lambda f: _alter(f.ledger_file, b"", b"x"), "ledger", "bytes after its last page"),
    "altered log": (lambda f: _alter(f.audit_file, b"approved", b"released"), "audit log", "breaks"),
    "altered approvals": (lambda f: f.approvals_file.write_text("x\n"), "approvals", "is not JSON"),
    "spent": (lambda f: set_policy(f, **_limit("per_year", 1e-9)), "tiny", "above the 1e-09 allowed"),
    "delta": (lambda f: set_policy(f, **_limit("per_year", 1.0, 0.5)), "policy", "per_year.delta=0.5 is not below one over"),
    "idle budget": (lambda f: set_policy(f, **_limit("per_year", 60.0)), "policy", "never holds anybody back"),
    "model": (lambda f: set_policy(f, models=["small_cnn", "smal_cnn"]), "policy", "'smal_cnn' is no network"),
    "stricter": (lambda f: set_policy(f, minimum_patients=9), "tiny", "8 patients train here, fewer than minimum_patients=9"),
    "manifest": (lambda f: _spoil_settings(f, "manifest.csv", "manifst.csv"), "manifest", "manifst.csv is missing"),
    "copy": (lambda f: next((f.path / "studies").glob("*/study.yaml")).write_text("{"), "tiny", "approve it again"),
    "consent": (lambda f: set_policy(f, consent_column="consent"), "tiny", "Nobody may be used before it is right"),
    "opt-out": (lambda f: f.opt_out_file.unlink(), "manifest", "the opt-out list"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_cross(name: str, folder: SiteFolder) -> None:
    spoil, what, said = FAULTS[name]
    spoil(folder)
    findings = found(folder)
    assert what in bad(findings)
    assert said in findings[what].text
    told = lines(list(findings.values()))
    assert told[-1].startswith("not ready: ")
    assert any(line.startswith(f"✗ {what} ") for line in told)


def test_what_is_no_site_folder_is_one_cross(tmp_path: Path) -> None:
    [only] = check(tmp_path, lambda _: pytest.fail("asked"))  # type: ignore[arg-type, return-value]
    assert (only.ok, "no site folder" in only.text) == (False, True)


def test_the_server_is_asked_for_the_key_only_where_it_can_be_trusted(folder: SiteFolder) -> None:
    assert bad(found(folder, registered=False)) == ["registered"]
    assert found(folder, registered=None)["registered"].mark == "?"
    _other_authority(folder)
    assert found(folder, registered=False)["registered"].text == "the server was not asked"


def test_no_study_and_a_test_mode_are_told(folder: SiteFolder, root: Path, tmp_path: Path) -> None:
    fresh = hospital(tmp_path / "fresh", root, allow_simulated_noise=True)
    findings = found(fresh)
    assert findings["studies"].ok is False
    assert (findings["policy"].ok, "TEST MODE" in findings["policy"].text) == (None, True)


def test_ids_of_the_opt_out_list_that_nobody_has_show(folder: SiteFolder) -> None:
    folder.opt_out_file.write_text("p00\nP00\nP01\n")
    findings = found(folder)
    assert "3 on the opt-out list, 1 of them in the manifest" in findings["manifest"].text
    assert "left out: 1 opted out" in findings["data of tiny"].text


def test_a_step_that_fails_is_a_cross(folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedimaging.site import check as module

    for error, said in ((RuntimeError("CUDA out of\nmemory"), "failed: CUDA out of memory"), (RunError("disk"), "disk")):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(module, "train_locally", fails)
        step = found(folder)["one step of tiny"]
        assert (step.ok, step.text) == (False, said)


def test_free_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    proc = tmp_path / "meminfo"
    proc.write_text("MemTotal:  16000000 kB\nMemAvailable:  8000000 kB\n")
    assert free_memory_gb(proc, tmp_path / "none") == 8.192
    (tmp_path / "memory.current").write_text("1000000000\n")
    for limit, free in (("max", 8.192), ("3000000000", 2.0), ("99000000000000", 8.192)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert free_memory_gb(proc, tmp_path) == free
    assert free_memory_gb(tmp_path / "none", tmp_path) is None


def test_a_folder_that_cannot_be_written_is_told(folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written by this user" in found(folder)["disk"].text
