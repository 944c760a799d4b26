"""Sweeps with real processes on tiny studies."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedimaging.errors import StudyError
from fedimaging.runs.sweep_pool import jobs_of
from tests.conftest import ROOT, TINY

SAME = ("results.csv", "summary.json", "table.md", "table.tex")
SHORT = ("federation.rounds=8", "privacy.engine=vmap", "evaluation.groups=[sex]", "evaluation.minimum_group=2")


def _study(tmp_path: Path, *overrides: str) -> Path:
    from fedimaging.study.load import load

    path = tmp_path / "tiny.yaml"
    study = load(ROOT / "configs" / "quickstart.yaml", [*TINY, *SHORT, *overrides])
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    return path


def _command(study: Path, out: Path, *more: str, epsilon: str = "2,inf", seeds: int = 2) -> list[str]:
    return [sys.executable, "-m", "fedimaging.cli", "sweep", str(study), "--epsilon", epsilon, "--seeds", str(seeds), "--out",
            str(out), *more]


def _sweep(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(list(command), capture_output=True, text=True, timeout=500, check=False)


def _children(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _until(true: "Iterator[bool]", seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not next(true):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _gone(pids: list[int]) -> Iterator[bool]:
    while True:
        yield not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _in_the_middle(process: "subprocess.Popen[str]", out: Path, least: int) -> Iterator[bool]:
    """Some runs finished, and another begun; or the process over."""
    while True:
        done = len(list(out.glob("runs/*/report.json")))
        begun = [path for path in out.glob("runs/*/rounds.jsonl") if not (path.parent / "report.json").exists()]
        yield (done >= least and bool(begun)) or process.poll() is not None


@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_with_the_tables_of_an_undisturbed_one(tmp_path: Path) -> None:
    study = _study(tmp_path)
    calm = _sweep(*_command(study, tmp_path / "calm", "--jobs", "2", "-q"))
    assert calm.returncode == 0, calm.stderr
    killed = tmp_path / "killed"
    for reports in (0, 1, 3):
        process = subprocess.Popen(_command(study, killed, "--jobs", "2", "-q"), stdout=subprocess.DEVNULL)

        _until(_in_the_middle(process, killed, reports))
        assert process.poll() is None, "the sweep ended before it could be killed"
        workers = _children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _until(_gone(workers), 10)  # children die with their parent
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/report.json")}
    again = _sweep(*_command(study, killed, "--jobs", "1", "-q"))
    assert again.returncode == 0, again.stderr
    assert finished
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing finished was done twice
    for name in SAME:
        assert (killed / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name


@pytest.mark.slow
def test_a_sweep_grows_shares_baselines_and_refuses_before_it_trains(tmp_path: Path) -> None:
    study, out = _study(tmp_path), tmp_path / "sweep"
    first = _sweep(*_command(study, out, epsilon="2", seeds=1))
    assert first.returncode == 0, first.stderr
    assert "2/2 " in first.stderr
    assert "| 2 | patient | federated |" in first.stdout
    begun = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/report.json")}
    assert {path.parent.name for path in begun} == {"epsilon_2-patient-seed_0", "epsilon_inf-seed_0"}
    grown = _sweep(*_command(study, out, "--unit", "patient,record", epsilon="2,8", seeds=1))
    assert grown.returncode == 0, grown.stderr
    assert "5 runs, 2 of them finished" in grown.stderr
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    assert len(list(out.glob("runs/*/baselines/pooled"))) == 1
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        assert {row["scope"] for row in csv.DictReader(file)} == {"test", "site", "site_mean", "group"}
    for options, words in (
        (("-o", "policy.budget_epsilon=5"), "policy.budget_epsilon=5.0 is below"),
        (("-o", "hospitals.held_out=[nowhere]"), "nowhere"),
    ):
        refused = _sweep(*_command(study, tmp_path / "refused", *options, epsilon="2,8", seeds=1))
        assert refused.returncode == 2
        assert refused.stderr.count("error:") == 1
        assert words in refused.stderr
        assert "nothing was started" in refused.stderr
        assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_ctrl_c_ends_them_all(tmp_path: Path) -> None:
    study, out = _study(tmp_path, "federation.rounds=30"), tmp_path / "sweep"
    process = subprocess.Popen(_command(study, out, "--jobs", "1", "-q", epsilon="inf"), stderr=subprocess.PIPE, text=True)

    def begun() -> Iterator[bool]:
        while True:
            yield any(out.glob("runs/*/rounds.jsonl")) or process.poll() is not None

    _until(begun())
    first = _children(process.pid)
    os.kill(first[0], signal.SIGKILL)

    def another() -> Iterator[bool]:
        while True:
            now = _children(process.pid)
            yield (any(out.glob("runs/*/report.json")) and bool(now) and now != first) or process.poll() is not None

    _until(another())
    second = _children(process.pid)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "the same command" in said
    _until(_gone(second), 10)
    for more in ((), ("--reports",)):  # the second time nothing is trained, but pages are missing
        assert _sweep(*_command(study, out, "--jobs", "1", "-q", *more, epsilon="inf")).returncode == 0
    assert len(list(out.glob("runs/*/report.html"))) == len(list(out.glob("runs/*"))) == 2


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_tables(tmp_path: Path) -> None:
    study = _study(tmp_path)
    here = _sweep(*_command(study, tmp_path / "here", "--jobs", "1", "-q", seeds=1))
    assert here.returncode == 0, here.stderr
    ray = Path(sys.executable).parent / "ray"
    port = str(20000 + os.getpid() % 20000)
    start = [str(ray), "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats",
             "--block"]
    log = (tmp_path / "ray.log").open("w")
    cluster = subprocess.Popen(start, stdout=log, stderr=log)
    try:
        for _ in range(120):
            if "Ray runtime started" in (tmp_path / "ray.log").read_text():
                break
            if cluster.poll() is not None:
                pytest.skip("no Ray cluster can be started here")
            time.sleep(1)
        there = _sweep(*_command(study, tmp_path / "there", "--ray-address", f"127.0.0.1:{port}", "-q", seeds=1))
    finally:
        cluster.send_signal(signal.SIGTERM)
        cluster.wait(timeout=60)
        log.close()
    assert there.returncode == 0, there.stderr
    for name in SAME:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def test_a_sweep_that_cannot_be_read_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    found = _sweep(*_command(ROOT / "configs" / "quickstart.yaml", tmp_path / "sweep", epsilon="0"))
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: --epsilon='0' is no number above 0")
    assert not (tmp_path / "sweep").exists()


def test_the_number_of_jobs() -> None:
    assert jobs_of("3", 10) == 3
    assert jobs_of("8", 2) == 2
    assert 1 <= jobs_of("auto", 100) <= len(os.sched_getaffinity(0))
    for wrong in ("0", "many", "-1"):
        with pytest.raises(StudyError, match=f"--jobs='{wrong}'"):
            jobs_of(wrong, 4)
