"""A study with hospital-level privacy, from its file to the page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedimaging.errors import RunError, StudyError
from fedimaging.federated import rounds
from fedimaging.privacy.gaussian import gaussian_epsilon
from fedimaging.runs import simulate as simulation
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.report import write_page
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
SITE_PRIVACY = ("federation.site_privacy={clip_norm: 0.1, noise_multiplier: 3.0, delta: 1e-3}", "privacy=null")


def run(study: Study, out: Path, **options: Any) -> dict[str, Any]:
    with LiveView(study.federation.rounds, quiet=True) as view:
        path = simulation.simulate(study, out, Options(**{"report": False, "workers": 1, **options}), view)
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def test_the_report_says_what_it_is_worth(tiny_study: MakeStudy, tmp_path: Path) -> None:
    report = run(tiny_study(*SITE_PRIVACY, "federation.sites_per_round=2"), tmp_path / "run")
    block = report["site_privacy"]
    assert block["releases"] == 2
    assert block["epsilon"] == pytest.approx(gaussian_epsilon(2**0.5 / 3, 1e-3))
    assert (block["hospitals_a_round"], block["noise_to_clip"], block["noise"]) == (2, 1.5, "simulated")
    page = write_page(tmp_path / "run").read_text()
    assert "it is mostly formal" in page
    assert "No privacy protection" in page  # for patients there is none


def test_the_mean_is_clipped_and_noised_and_a_drop_out_changes_no_denominator(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(*SITE_PRIVACY, "federation.rounds=1", "federation.site_privacy.noise_multiplier=1e-9")
    report = run(study, tmp_path / "whole")
    assert 0 < report["rounds"][0]["update_norm"] <= 0.1
    true = rounds.checked_update

    def only_one(reply: Any, site: str, *rest: Any) -> Any:
        if site != "hospital_01":
            raise rounds.SiteRefusal("error")
        return true(reply, site, *rest)

    monkeypatch.setattr(rounds, "checked_update", only_one)
    alone = run(study, tmp_path / "alone")
    assert alone["rounds"][0]["sites"] == ["hospital_01"]
    assert alone["rounds"][0]["update_norm"] == pytest.approx(0.1 / 3, rel=1e-6)  # of three that were asked


def test_a_resumed_run_forgets_no_release(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study(*SITE_PRIVACY)
    run(study, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    (tmp_path / "run" / "checkpoint.npz").unlink()
    assert run(study, tmp_path / "run", resume=True)["site_privacy"]["releases"] == 4


def test_baselines_are_neither_noised_nor_counted(tiny_study: MakeStudy, tmp_path: Path) -> None:
    noisy = run(tiny_study(*SITE_PRIVACY), tmp_path / "noisy", baselines=True)
    plain = run(tiny_study("privacy=null"), tmp_path / "plain", baselines=True)
    assert noisy["baselines"]["pooled"]["test"] == plain["baselines"]["pooled"]["test"]
    assert noisy["site_privacy"]["releases"] == 2
    assert plain["site_privacy"] is None
    assert not np.isclose(noisy["rounds"][0]["update_norm"], plain["rounds"][0]["update_norm"])


def test_it_stands_beside_the_patients_own_protection(tiny_study: MakeStudy, tmp_path: Path) -> None:
    report = run(tiny_study(SITE_PRIVACY[0], "privacy.engine=vmap"), tmp_path / "run")
    assert report["site_privacy"]["releases"] == 2
    assert all(7.9 < site["privacy"]["epsilon"] <= 8.0 for site in report["sites"].values())


def test_weights_that_are_not_equal_are_refused(tiny_study: MakeStudy) -> None:
    with pytest.raises(StudyError, match="weights: uniform"):
        tiny_study(*SITE_PRIVACY, "federation.weights=public_patients")


def test_a_server_without_noise_for_it_does_not_run(
    tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "_means", lambda run, federation: None)
    with pytest.raises(RunError, match="this server has no noise for its means"):
        run(tiny_study(*SITE_PRIVACY), tmp_path / "run")
