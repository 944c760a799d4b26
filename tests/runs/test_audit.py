"""Whole audits of tiny federations: what they write, when they cry violation, what they do again after a kill."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from fedimaging.cli import app
from fedimaging.errors import RunError
from fedimaging.models.layout import Layout
from fedimaging.models.zoo import MODELS
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.runs import audit_federation, audit_inversion, audit_shadows
from fedimaging.runs.audit import audit, headline
from fedimaging.runs.audit_inversion import first_dense, nearest
from fedimaging.runs.audit_options import AuditOptions
from fedimaging.runs.audit_shadows import half, population
from fedimaging.runs.audit_target import Target, open_target
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
WAVELETS = ("model.name=wavelet_net", "model.options={}", "data.image_size=[20,20]", "training.local_epochs=null",
            "training.local_steps=1", "training.batch_size=1000", "training.learning_rate=2")
SMALL = AuditOptions(shadows=2, canaries=100)


def run(study: Study, out: Path) -> Path:
    with LiveView(study.federation.rounds, quiet=True) as view:
        simulate(study, out, Options(report=False, workers=1), view)
    return out


def quiet(text: str) -> None:
    """Say nothing."""


def line(tree: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in tree["attacks"] if one["name"] == name)
    return found


@pytest.fixture(autouse=True)
def _quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_inversion, "search_of", lambda target: audit_inversion.Search(steps=10, restarts=1))


def test_an_audit_leaves_figures_a_page_and_the_run_as_it_was(tiny_study: MakeStudy, tmp_path: Path) -> None:
    out = run(tiny_study(*WAVELETS, "federation.rounds=10"), tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    tree = audit(out, SMALL, quiet)
    assert tree == json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert {path: path.read_bytes() for path in before} == before
    assert [one["name"] for one in tree["attacks"]] == [
        "membership.loss", "membership.lira", "membership.updates", "reproduction", "canaries.one_run", "mechanism.white_box",
        "inversion.analytic", "inversion.optimised",
    ]
    assert line(tree, "reproduction")["verdict"] == "consistent"
    canaries = line(tree, "canaries.one_run")
    assert canaries["verdict"] == "consistent"
    assert 0 < canaries["metrics"]["epsilon_low_gaussian"]["value"] < canaries["ceiling"]["epsilon"] <= 8
    assert line(tree, "mechanism.white_box")["verdict"] == "consistent"
    assert line(tree, "inversion.analytic")["groups"]["control"]["identification"]["value"] == 1.0
    page = (out / "audit.html").read_text(encoding="utf-8")
    assert "Canaries in one run" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert headline(tree)[-1] == f"verdict: {tree['verdict']}"
    again = audit(out, SMALL, quiet)
    assert all(again[key] == tree[key] for key in tree.keys() - {"created", "seconds"})


def test_shadows_that_are_finished_are_not_trained_again(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(tiny_study(*WAVELETS), tmp_path / "run")
    options = AuditOptions(("membership",), shadows=4)
    trained: list[str] = []

    def train(target: Target, federation: Any, **more: Any) -> np.ndarray:
        trained.append(federation.folder.name)
        if federation.folder.name == "03" and trained.count("03") == 1:
            (federation.folder / "sites").mkdir(parents=True)  # half-written, as a kill leaves it
            raise KeyboardInterrupt
        return audit_federation.train_federation(target, federation, **more)

    monkeypatch.setattr(audit_shadows, "train_federation", train)
    with pytest.raises(KeyboardInterrupt):
        audit(out, options, quiet)
    assert not (out / "audit.json").exists()
    tree = audit(out, options, quiet)
    assert trained == ["01", "02", "03", "03", "04"]
    assert {one["target"] for one in tree["attacks"]} >= {"final model", "shadow federation 1"}


def test_half_the_noise_is_a_violation_by_canaries_and_by_running_again(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, options = tiny_study(*WAVELETS, "federation.rounds=10"), AuditOptions(("canaries",), canaries=200)
    whole = SimulatedNoise.add_gaussian
    with monkeypatch.context() as broken:
        half = lambda self, tensors, std, step, **how: whole(self, tensors, std / 2, step, **how)  # noqa: E731
        broken.setattr(SimulatedNoise, "add_gaussian", half)
        out = run(study, tmp_path / "run")
        tree = audit(out, options, quiet)
        assert line(tree, "reproduction")["verdict"] == "consistent"  # the same broken code gives the same weights
        assert line(tree, "canaries.one_run")["verdict"] == "violation"
        assert line(tree, "mechanism.white_box")["verdict"] == "violation"
    (out / "audit" / "rerun" / "result.npz").unlink()
    assert line(audit(out, options, quiet), "reproduction")["verdict"] == "violation"
    answer = CliRunner().invoke(app, ["audit", str(out), "--attacks", "canaries", "--quiet"])
    assert answer.exit_code == 1
    assert "verdict: violation" in answer.stdout


def mlp(layout: Layout) -> torch.nn.Module:
    """A network that learns patients by heart."""
    size = layout.in_channels * int(np.prod(layout.image_size))
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(size, 64), torch.nn.Tanh(), torch.nn.Linear(64, layout.out_channels)
    )


def test_an_overfitted_model_without_privacy_gives_its_patients_away(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "mlp", mlp)
    study = tiny_study(
        "privacy=null", "data.phantoms.patients=240", "data.phantoms.hospitals=1", "data.phantoms.lesion_contrast=0.01",
        "data.phantoms.scans_per_patient=[1,1]", "data.split.test=0.5", "training.optimizer=adam",
        "training.learning_rate=0.001", "training.local_epochs=200", "federation.rounds=1", "model.name=mlp",
        "model.options={}", "evaluation.every=0",
    )  # fmt: skip
    tree = audit(run(study, tmp_path / "run"), AuditOptions(("membership",), shadows=2), quiet)
    assert line(tree, "membership.loss")["metrics"]["auc"]["low"] > 0.5
    assert line(tree, "membership.loss")["ceiling"] is None
    assert line(tree, "membership.loss")["verdict"] == "no claim"


def test_records_are_attacked_as_records_and_as_patients(tiny_study: MakeStudy, tmp_path: Path) -> None:
    out = run(tiny_study(*WAVELETS, "privacy.unit=record"), tmp_path / "run")
    tree = audit(out, AuditOptions(("membership",), shadows=2), quiet)
    record, patient = (next(a for a in tree["attacks"] if a["unit"] == unit) for unit in ("record", "patient"))
    assert record["sizes"]["members"] > patient["sizes"]["members"]
    assert patient["ceiling"]["epsilon"] > record["ceiling"]["epsilon"]


def test_halves_are_complements_by_patient_at_every_hospital(tiny_study: MakeStudy, tmp_path: Path) -> None:
    target = open_target(run(tiny_study(*WAVELETS), tmp_path / "run"))
    people = population(target)
    first, second = half(target, people, 0), half(target, people, 1)
    assert np.array_equal(first, ~second)
    for site in np.unique(people.site):
        mine = np.unique(people.patient[people.site == site])
        assert abs(2 * first[mine].sum() - len(mine)) <= 1
    assert not np.array_equal(first, half(target, people, 2))


def test_the_dense_layer_that_sees_the_image_is_found_and_no_other() -> None:
    x = torch.rand(3, 1, 4, 4)
    mlp = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    found = first_dense(mlp, x)
    assert found is not None
    assert (found.of_image, found.places) == (True, (0, 1))
    convolved = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    assert first_dense(convolved, x) is None


def test_the_nearest_candidate_is_the_one_it_looks_like() -> None:
    candidates = np.random.default_rng(0).random((5, 1, 8, 8))
    assert nearest(0.3 * candidates[::-1] + 0.4, candidates).tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(("given", "said"), [
    ({"attacks": ("membershop",)}, "did you mean 'membership'"), ({"attacks": ()}, "must name some of"),
    ({"shadows": 3}, "must be an even number"), ({"canaries": 5}, "from 20"), ({"jobs": 0}, "at least 1"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        replace(AuditOptions(), **given)


def test_what_is_no_finished_run_is_refused(tiny_study: MakeStudy, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["audit", str(tmp_path)])
    assert isinstance(answer.exception, RunError)
    out = run(tiny_study(*WAVELETS), tmp_path / "run")
    weights = load_file(out / "weights.safetensors")
    save_file({name: array[:1] for name, array in weights.items()}, out / "weights.safetensors")
    with pytest.raises(RunError, match="holds another network"):
        open_target(out)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for key, said in (("data_fingerprint", "the data changed"), ("fingerprint", "not the one of its report")):
        report[key] = "0" * 64
        (out / "report.json").write_text(json.dumps(report), encoding="utf-8")
        with pytest.raises(RunError, match=said):
            open_target(out)
    named = {"run.json": "a baseline", "federation.json": "only a simulation", "report.json": "no finished run"}
    for missing, said in named.items():
        (out / missing).unlink()
        with pytest.raises(RunError, match=said):
            open_target(out)


def test_a_run_that_claims_nothing_of_single_updates_is_refused(tiny_study: MakeStudy, tmp_path: Path) -> None:
    summed = ("privacy.secure_sum=ideal", "federation.weights=public_patients", "federation.minimum_replies=3",
              "training.batch_size=1000", "training.local_epochs=null", "training.local_steps=1")
    out = run(tiny_study(*WAVELETS, *summed), tmp_path / "run")
    with pytest.raises(RunError, match="assumed an ideal secure sum"):
        open_target(out)
