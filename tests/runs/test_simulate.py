import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from fedimaging.errors import DataError, FedimagingError, RunError, StudyError
from fedimaging.privacy.ledger import Ledger
from fedimaging.runs import hospitals
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.site import audit_log
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]


def _run(study: Study, out: Path, **options: Any) -> dict[str, Any]:
    with LiveView(study.federation.rounds, quiet=True) as view:
        path = simulate(study, out, Options(**{"report": False, "workers": 1, **options}), view)
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def _weights(out: Path) -> np.ndarray:
    arrays = load_file(out / "weights.safetensors")
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


ENGINE = "privacy.engine=vmap"


def test_a_private_run_reports_what_every_ledger_holds(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(ENGINE)
    report = _run(study, tmp_path / "run")
    assert report["fingerprint"] == study.fingerprint
    assert set(report["sites"]) == {"hospital_01", "hospital_02", "hospital_03"}
    for name, site in report["sites"].items():
        privacy = site["privacy"]
        ledger = Ledger(tmp_path / "run" / "sites" / name / "ledger.sqlite")
        assert privacy["steps"] == sum(charge.steps for charge in ledger.charges())
        assert privacy["unit"] == "patient"
        assert 7.9 < privacy["epsilon"] <= 8.0 <= privacy["budget_epsilon"]
        assert privacy["epsilon_rdp"] >= privacy["epsilon"]
        events = audit_log.read(tmp_path / "run" / "sites" / name / "audit.jsonl")
        assert [e["event"] for e in events].count("released") == 2
    assert report["test"]["auroc"]["n_patients"] > 0
    assert [row["round"] for row in report["rounds"]] == [1, 2]
    assert {"total", "training", "evaluation", "start"} <= report["seconds"].keys()


def test_the_same_study_gives_the_same_bits_and_another_seed_does_not(tiny_study: MakeStudy, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _run(tiny_study(ENGINE, f"seed={seed}"), tmp_path / name)
    assert np.array_equal(_weights(tmp_path / "a"), _weights(tmp_path / "b"))
    assert not np.allclose(_weights(tmp_path / "a"), _weights(tmp_path / "c"))


@pytest.mark.parametrize("privacy", [(ENGINE,), ("privacy=null",)], ids=["private", "plain"])
def test_workers_change_nothing_but_the_time(privacy: tuple[str, ...], tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*privacy)
    for workers in (1, 2):
        _run(study, tmp_path / str(workers), workers=workers)
    np.testing.assert_allclose(_weights(tmp_path / "1"), _weights(tmp_path / "2"), rtol=0, atol=1e-6)


def test_a_noise_limit_shortens_the_mean_update_by_what_the_public_plans_say(tiny_study: MakeStudy, tmp_path: Path) -> None:
    base = (ENGINE, "federation.rounds=1", "privacy.target_epsilon=null", "privacy.noise_multiplier=2.0",
            "training.batch_size=1000", "training.local_epochs=null", "training.local_steps=4")  # fmt: skip
    reports = {limit: _run(tiny_study(*base, *more), tmp_path / limit) for limit, more in {
        "none": (), "low": ("federation.noise_limit=1e-3",), "high": ("federation.noise_limit=1e3",)}.items()}  # fmt: skip
    study, sites = tiny_study(*base), reports["none"]["sites"].values()
    plans = hospitals.make_federation(study, hospitals.load_data(study), tmp_path / "made", "cpu").plans
    patients = [plan.n_units for plan in plans.values()]
    # four steps of the study's learning rate, noise multiplier 2, at each hospital over its patients; a plain mean of three
    assert study.privacy is not None
    each = [study.training.learning_rate * 2.0 * study.privacy.clip_norm / n * 4**0.5 for n in patients]
    factor = 1e-3 / (sum(noise**2 for noise in each) ** 0.5 / 3)
    norms = {limit: report["rounds"][0]["update_norm"] for limit, report in reports.items()}
    assert factor < 0.1
    assert norms["low"] == pytest.approx(factor * norms["none"], rel=1e-6)
    assert norms["high"] == norms["none"]
    assert all(site["privacy"] == other["privacy"] for site, other in zip(reports["low"]["sites"].values(), sites, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("privacy", [(ENGINE,), ("privacy=null",)], ids=["private", "plain"])
def test_flowers_ray_engine_gives_the_same_weights(privacy: tuple[str, ...], tiny_study: MakeStudy, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study(*privacy).model_dump(mode="json")))
    for engine in ("in_process", "ray"):
        subprocess.run(
            [sys.executable, "-m", "fedimaging.cli", "simulate", str(path), "--out", str(tmp_path / engine), "--engine", engine,
             "--workers", "1", "--no-report", "-q"], check=True, timeout=300,
        )
    np.testing.assert_allclose(_weights(tmp_path / "ray"), _weights(tmp_path / "in_process"), rtol=0, atol=1e-6)


def test_baselines_stand_beside_the_federation_with_ledgers_of_their_own(tiny_study: MakeStudy, tmp_path: Path) -> None:
    report = _run(tiny_study(ENGINE, "hospitals.held_out=[hospital_03]"), tmp_path / "run", baselines=True)
    pooled, alone = report["baselines"]["pooled"], report["baselines"]["local_only"]
    assert pooled["test"]["auroc"]["n_patients"] == report["test"]["auroc"]["n_patients"]
    assert alone["test"]["auroc"]["n_patients"] == report["test"]["auroc"]["n_patients"]
    assert pooled["held_out"]["auroc"]["n_patients"] == report["held_out"]["auroc"]["n_patients"] > 0
    assert set(alone["sites"]) == {"hospital_01", "hospital_02"}
    assert set(alone["matrix"]["hospital_01"]) == {"hospital_01", "hospital_02", "hospital_03"}
    for arm in ("pooled/sites/pooled", "local_only/sites/hospital_01"):
        assert Ledger(tmp_path / "run" / "baselines" / arm / "ledger.sqlite").charges()
    assert report["sites"]["hospital_03"]["role"] == "held_out"
    assert report["sites"]["hospital_03"]["privacy"] is None


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_bits_of_an_undisturbed_run(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(ENGINE, "federation.rounds=4", "training.local_epochs=2")
    _run(study, tmp_path / "calm")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    command = [sys.executable, "-m", "fedimaging.cli", "simulate", str(path), "--out", str(tmp_path / "killed"), "--resume",
               "--workers", "1", "--no-report", "-q"]
    process = subprocess.Popen(command)
    log = tmp_path / "killed" / "sites" / "hospital_02" / "ledger.sqlite"
    while not log.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)  # hospital_02 has reserved its first round and not finished it
    process.wait()
    assert not (tmp_path / "killed" / "report.json").exists()
    subprocess.run(command, check=True, timeout=300)
    assert np.array_equal(_weights(tmp_path / "calm"), _weights(tmp_path / "killed"))
    for name in ("hospital_01", "hospital_02", "hospital_03"):
        calm, killed = (
            sum(c.steps for c in Ledger(tmp_path / run / "sites" / name / "ledger.sqlite").charges())
            for run in ("calm", "killed")
        )
        assert killed >= calm


def test_a_round_that_would_pass_the_budget_is_refused_and_the_run_says_so(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(ENGINE, "policy.budget_epsilon=8.0")
    _run(study, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    (tmp_path / "run" / "checkpoint.npz").unlink()  # the server forgets; the hospitals do not
    with pytest.raises(RunError, match="replayed_round"):
        _run(study, tmp_path / "run", resume=True)
    for release in (tmp_path / "run" / "sites").glob("*/release.npz"):
        release.unlink()
    with pytest.raises(RunError, match="budget_exceeded"):
        _run(study, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (("policy.budget_epsilon=2",), StudyError, "policy.budget_epsilon=2.0 is below"),
        (("policy.minimum_noise_multiplier=50",), StudyError, "minimum_noise_multiplier"),
        (("privacy.delta=0.5",), FedimagingError, "delta"),
        (("hospitals.held_out=[nowhere]",), StudyError, "nowhere"),
        (("hospitals.column=clinic",), DataError, "clinic"),
        (("task.label=tumour",), DataError, "tumour"),
        (("runtime.device=abacus",), StudyError, "abacus"),
        (("federation.minimum_replies=9",), StudyError, "minimum_replies=9 is above the 3 hospitals"),
    ],
)
def test_what_cannot_work_is_one_clear_error(
    overrides: tuple[str, ...], error: type[Exception], words: str, tiny_study: MakeStudy, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        _run(tiny_study(ENGINE, *overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_while_it_wrote_its_first_file_begins_anew(
    resume: bool, tiny_study: MakeStudy, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".study.yaml.4458.part"):
        (run / name).write_text("name: q")
    _run(tiny_study("privacy=null"), run, resume=resume)
    assert (run / "report.json").exists()
    assert not list(run.rglob(".*.part"))


def test_a_run_that_was_killed_before_its_page_was_written_gets_it(tiny_study: MakeStudy, tmp_path: Path) -> None:
    run, study = tmp_path / "run", tiny_study("privacy=null")
    _run(study, run, report=True)
    page, facts = (run / "report.html").read_bytes(), (run / "report.json").read_bytes()
    (run / "report.html").unlink()
    _run(study, run, resume=True)
    assert not (run / "report.html").exists()
    (run / ".report.html.4458.part").write_text("<html>")
    _run(study, run, resume=True, report=True)
    assert ((run / "report.html").read_bytes(), (run / "report.json").read_bytes()) == (page, facts)
    assert not list(run.rglob(".*.part"))
    (run / "report.html").write_text("of an earlier report")
    os.utime(run / "report.html", (0, 0))
    _run(study, run, resume=True, report=True)
    assert (run / "report.html").read_bytes() == page


def test_folders_of_others_are_left_alone(tiny_study: MakeStudy, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    for name in ("dear.txt", ".study.yaml.12.part"):
        (tmp_path / "letters" / name).write_text("x")
    with pytest.raises(RunError, match="holds no run"):
        _run(tiny_study(ENGINE), tmp_path / "letters")
    assert len(list((tmp_path / "letters").glob("[!.]*"))) == len(list((tmp_path / "letters").glob(".study*"))) == 1
    _run(tiny_study("privacy=null"), tmp_path / "run")
    with pytest.raises(RunError, match="finished run of this study; add --resume"):
        _run(tiny_study("privacy=null"), tmp_path / "run")
    with pytest.raises(RunError, match="another study"):
        _run(tiny_study("privacy=null", "seed=3"), tmp_path / "run", resume=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        _run(tiny_study("privacy=null"), tmp_path / "file" / "run")


@pytest.mark.parametrize("algorithm", ["fedavgm", "fedadam", "fedyogi", "fedprox"])
def test_every_algorithm_trains(algorithm: str, tiny_study: MakeStudy, tmp_path: Path) -> None:
    extra = ["federation.proximal_mu=0.1"] if algorithm == "fedprox" else ["federation.server_learning_rate=0.01"]
    report = _run(tiny_study("privacy=null", f"federation.algorithm={algorithm}", *extra), tmp_path / "run")
    assert report["rounds"][-1]["update_norm"] > 0


@pytest.mark.parametrize("kept", ["norm", "head"])
def test_local_parameters_stay_at_the_hospital(kept: str, tiny_study: MakeStudy, tmp_path: Path) -> None:
    report = _run(tiny_study(ENGINE, f"federation.local_parameters={kept}"), tmp_path / "run")
    sizes = {np.load(path).size for path in (tmp_path / "run" / "sites").glob("*/local_*.npy")}
    assert len(sizes) == 1
    total = report["model"]["trainable_parameters"]
    assert report["bytes_per_round_per_site"] == 8 * (total - sizes.pop())


def test_a_cohort_and_the_mean_of_the_last_rounds(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study("privacy=null", "federation.sites_per_round=2", "federation.average_last=2", "federation.rounds=3")
    report = _run(study, tmp_path / "run")
    assert [len(row["sites"]) for row in report["rounds"]] == [2, 2, 2]
    with np.load(tmp_path / "run" / "checkpoint.npz") as state:
        recent = [state[name] for name in sorted(state.files) if name.startswith("recent.")]
    assert len(recent) == 2
    arrays = load_file(tmp_path / "run" / "weights.safetensors")
    assert np.isclose(sum(a.astype(float).sum() for a in arrays.values()), np.mean(recent, 0).astype(float).sum(), atol=1e-3)


def test_one_class_hospital_goes_on_without_an_auroc_there(tmp_path: Path, tiny_study: MakeStudy) -> None:
    study = tiny_study("privacy=null", "data.phantoms.prevalence=[0.0,0.6]", "data.phantoms.patients=60")
    report = _run(study, tmp_path / "run")
    assert report["sites"]["hospital_01"]["test"]["auroc"]["value"] is None
    assert report["test"]["auroc"]["value"] is not None


def test_a_full_disk_is_told_and_nothing_is_half_written(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "checkpoint.npz":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"no space left .* --resume"):
        _run(tiny_study("privacy=null"), tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.part"))
    monkeypatch.undo()
    assert _run(tiny_study("privacy=null"), tmp_path / "run", resume=True)["rounds"][-1]["round"] == 2


