"""Hospitals' own models and weights that follow need, through whole simulated runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedimaging.errors import RunError, SiteRefusal, StudyError
from fedimaging.results import SiteEvaluation
from fedimaging.runs import report_personal
from fedimaging.runs import simulate as simulation
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.personal import personal_facts
from fedimaging.runs.report import write_page
from fedimaging.runs.run_dir import RunDir
from fedimaging.runs.simulate import simulate
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import TrainInstruction
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
MANY = "data.phantoms.patients=120"
FINE = "personalisation={kind: fine_tune, steps: 3, learning_rate: 0.1}"
DITTO = "personalisation={kind: ditto, steps: 2, learning_rate: 0.1, mu: 0.5}"


def _run(study: Study, out: Path, **options: Any) -> dict[str, Any]:
    with LiveView(study.federation.rounds, quiet=True) as view:
        path = simulate(study, out, Options(workers=1, **{"report": False, **options}), view)
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def _weights(out: Path) -> np.ndarray:
    with np.load(out / "checkpoint.npz") as kept:
        return np.asarray(kept["weights"])


def _own(out: Path, site: str) -> np.ndarray:
    with np.load(out / "sites" / site / "personal.npz") as kept:
        return np.asarray(kept["vector"])


def test_own_models_leave_the_shared_one_and_what_it_costs_as_they_are(tiny_study: MakeStudy, tmp_path: Path) -> None:
    plain = _run(tiny_study(MANY), tmp_path / "plain")
    for name, keys in (("fine", FINE), ("ditto", DITTO)):
        report = _run(tiny_study(keys, MANY), tmp_path / name)
        np.testing.assert_array_equal(_weights(tmp_path / "plain"), _weights(tmp_path / name))
        for site, facts in report["sites"].items():
            assert facts["privacy"]["epsilon"] == plain["sites"][site]["privacy"]["epsilon"]
            assert np.abs(_own(tmp_path / name, site) - _weights(tmp_path / name)).max() > 0
    assert plain["personalised"] is None


def test_ditto_with_an_endless_pull_is_the_shared_model_and_gains_nothing(tiny_study: MakeStudy, tmp_path: Path) -> None:
    report = _run(tiny_study("personalisation={kind: ditto, steps: 2, learning_rate: 0.1, mu: 1.0e+12}", MANY), tmp_path / "run")
    for site, facts in report["personalised"]["sites"].items():
        np.testing.assert_allclose(_own(tmp_path / "run", site), _weights(tmp_path / "run"), atol=1e-6)
        assert (facts["over_shared"]["value"], facts["over_alone"]) == (0.0, None)


def test_a_killed_run_goes_on_to_the_same_own_models(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(DITTO, MANY, "federation.rounds=3")
    _run(study, tmp_path / "whole")
    killed, save = tmp_path / "killed", RunDir.save_state

    def save_twice(self: RunDir, state: Any) -> None:
        if state.round == 2:
            raise RunError("killed")
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "save_state", save_twice)
        with pytest.raises(RunError, match="killed"):
            _run(study, killed)
    _run(study, killed, resume=True)  # round 2 again: its own models are there already
    for site in ("hospital_01", "hospital_02", "hospital_03"):
        np.testing.assert_array_equal(_own(killed, site), _own(tmp_path / "whole", site))
        assert sorted(p.name for p in (killed / "sites" / site).glob("personal_*.npy")) == [
            "personal_000002.npy", "personal_000003.npy"]


def test_the_page_shows_own_models_beside_training_alone(tiny_study: MakeStudy, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = _run(tiny_study(FINE, MANY), out, baselines=True)
    facts = report["personalised"]
    assert set(facts["sites"]) == set(report["sites"])
    for gain in (*facts["sites"]["hospital_01"].values(), *facts["mean"].values()):
        assert gain is not None
    site = facts["sites"]["hospital_01"]
    alone = report["baselines"]["local_only"]["sites"]["hospital_01"]["auroc"]["value"]
    assert site["over_alone"]["value"] == pytest.approx(site["test"]["auroc"]["value"] - alone)
    assert site["over_alone"]["low"] <= site["over_alone"]["value"] <= site["over_alone"]["high"]
    page = write_page(out).read_text()
    assert "Hospitals’ own models" in page
    assert "carry no ε" in page
    assert "Weights of the hospitals" not in page


def test_local_layers_are_set_beside_a_run_in_which_all_travel(tiny_study: MakeStudy, tmp_path: Path) -> None:
    report = _run(tiny_study("federation.local_parameters=norm", "privacy=null", MANY), tmp_path / "run", baselines=True)
    assert report["personalised"]["kind"] == "local_norm"
    last = RunDir(tmp_path / "run" / "baselines" / "all_shared").rounds()[-1]["site_metrics"]
    for site, facts in report["personalised"]["sites"].items():
        gain = facts["test"]["auroc"]["value"] - last[site]["auroc"]
        assert facts["over_shared"]["value"] == pytest.approx(gain)


def _scored(site: str, scores: list[float]) -> SiteEvaluation:
    labels = np.array([0, 0, 1, 1])
    arrays = {"scores": np.stack([1 - np.array(scores), scores], 1), "labels": labels, "patient": np.arange(4)}
    return SiteEvaluation(site, 1, 0.0, 4, {}, arrays, "scores")


def test_a_gain_is_paired_and_hospitals_count_alike(tiny_study: MakeStudy) -> None:
    right, wrong, half = [0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.1, 0.9, 0.2, 0.95]
    found = personal_facts(
        tiny_study(FINE), [_scored("a", wrong), _scored("b", half)], [_scored("a", right), _scored("b", half)], [])
    assert found is not None
    assert found["sites"]["a"]["over_shared"]["value"] == 1.0
    assert (found["sites"]["b"]["over_shared"]["low"], found["sites"]["b"]["over_shared"]["high"]) == (0.0, 0.0)  # same scores
    assert found["mean"]["over_shared"]["value"] == 0.5
    section = report_personal.personal_section({"personalised": found, "task": {"kind": "binary"}})
    assert section is not None
    assert [row.results[1].partition(" ")[0] for row in section["rows"]] == ["+1.000", "0.000", "+0.500"]


def test_figures_of_an_own_model_leave_only_where_they_can_be_told_as_unprotected(tiny_study: MakeStudy, tmp_path: Path) -> None:
    for release in ("none", "noised"):
        with pytest.raises(StudyError, match="no figure of it leaves"):
            tiny_study(FINE, f"policy.release_evaluation={release}")
    _run(tiny_study(FINE), tmp_path / "run")
    site = open_simulated_site(tmp_path / "run", 0)
    ask = TrainInstruction(site.fingerprint, 2, _weights(tmp_path / "run"))
    for mode in ("none", "noised"):  # a hospital's own policy, whatever the study says
        site.policy = site.policy.model_copy(update={"release_evaluation": mode})
        with pytest.raises(SiteRefusal, match="evaluation_not_released"):
            site.evaluate(ask, final=True, personal=True)
    site.policy = site.policy.model_copy(update={"release_evaluation": "metrics"})
    with pytest.raises(SiteRefusal, match="wrong_round"):
        site.evaluate(TrainInstruction(site.fingerprint, 1, ask.weights), final=True, personal=True)
    assert site.evaluate(ask, final=True, personal=True).release == "metrics"
    events = [json.loads(line) for line in (site.folder / "audit.jsonl").read_text().splitlines()]
    assert events[-1]["model"] == "personal"


FAIR = ("data.split.validation=0.3", "data.phantoms.patients=120", "privacy=null", "federation.rounds=3")


def test_q_0_is_the_run_without_fairness_to_the_bit(tiny_study: MakeStudy, tmp_path: Path) -> None:
    _run(tiny_study(*FAIR), tmp_path / "plain")
    _run(tiny_study(*FAIR, "federation.fairness={kind: q_fair, q: 0}"), tmp_path / "fair")
    np.testing.assert_array_equal(_weights(tmp_path / "plain"), _weights(tmp_path / "fair"))


@pytest.mark.parametrize("release", ["scores", "coarsened", "noised"])
def test_weights_move_to_the_hospital_with_the_greatest_risk_that_left(
    tiny_study: MakeStudy, tmp_path: Path, release: str
) -> None:
    private = ("privacy={noise_multiplier: 1.0, delta: 1.0e-3}", "policy.evaluation_noise_multiplier=0.3")
    study = tiny_study(*FAIR, *private, "federation.fairness={kind: minimax, step: 2.0}", "data.phantoms.patients=300",
                       f"policy.release_evaluation={release}")
    report = _run(study, tmp_path / "run")
    first, second, _ = report["rounds"]
    assert first["weights"] == {}
    risk = {site: (1 - m["auroc"]) if release == "noised" else m["loss"] for site, m in first["site_metrics"].items()}
    weights = second["weights"]
    assert max(weights, key=weights.get) == max(risk, key=risk.get)
    assert min(weights, key=weights.get) == min(risk, key=risk.get)
    spent = [facts["privacy"] for facts in report["sites"].values()]
    assert [one["evaluations"] for one in spent] == [3 if release == "noised" else 0] * 3
    assert report["fairness"]["on_validation"]
    assert sum(share["last"] for share in report["fairness"]["shares"].values()) == pytest.approx(1.0, abs=1e-5)
    assert any("federation.fairness" in words for words in report["privacy"]["not_protected"])


def test_evaluations_that_steer_are_on_validation_patients_and_the_last_on_test_patients(
    tiny_study: MakeStudy, tmp_path: Path
) -> None:
    _run(tiny_study(*FAIR, "federation.fairness.kind=q_fair"), tmp_path / "run")
    site = open_simulated_site(tmp_path / "run", 0)
    ask = TrainInstruction(site.fingerprint, 3, _weights(tmp_path / "run"))
    counts = [site.evaluate(ask, final=final).n_patients for final in (False, True)]
    assert counts == [site.validation_records.n_patients, site.test_records.n_patients]
    assert counts[0] != counts[1]


def test_a_killed_run_goes_on_with_the_same_weights_of_hospitals(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(*FAIR, "federation.fairness={kind: minimax, step: 5.0}")
    whole, killed, evaluated = _run(study, tmp_path / "whole"), tmp_path / "killed", simulation.RunDir.append_round

    def die(self: RunDir, result: Any) -> None:
        if result.round == 3:
            raise RunError("killed")
        evaluated(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "append_round", die)
        with pytest.raises(RunError, match="killed"):
            _run(study, killed)
    resumed = _run(study, killed, resume=True)
    assert resumed["rounds"][-1]["weights"] == whole["rounds"][-1]["weights"]
    np.testing.assert_array_equal(_weights(killed), _weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("evaluation.every=0",), "set evaluation.every to 1"),
        (("policy.release_evaluation=none",), "keeps all of it back"),
        (("federation.site_privacy={clip_norm: 1.0, noise_multiplier: 1.0}",), "weighs every hospital alike"),
        (("federation.weights=inverse_noise",), "fairness by need"),
        (("privacy.secure_sum=ideal", "training.local_epochs=null", "training.local_steps=1"), "shares noise by constant"),
    ],
)
def test_what_needs_constant_weights_is_refused_beside_fairness(
    tiny_study: MakeStudy, keys: tuple[str, ...], said: str
) -> None:
    with pytest.raises(StudyError, match=said):
        tiny_study("federation.fairness.kind=minimax", *keys)


def test_balanced_groups_train_and_are_charged_at_the_largest_rate(tiny_study: MakeStudy, tmp_path: Path) -> None:
    shares = "training.balance={column: sex, shares: {F: 0.25, M: 0.75}}"
    report = _run(tiny_study(shares, "training.batch_size=4"), tmp_path / "run")
    plain = _run(tiny_study("training.batch_size=4"), tmp_path / "plain")
    for site, facts in report["sites"].items():
        spent, without = facts["privacy"], plain["sites"][site]["privacy"]
        assert spent["sample_rate"] == pytest.approx(min(1.0, 2 * without["sample_rate"]))
        assert spent["epsilon"] <= 8.0
        assert spent["noise_multiplier"] > without["noise_multiplier"]
