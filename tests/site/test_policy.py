"""The hospital's policy stands above the study: refused before anything is charged."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedimaging.errors import SiteRefusal
from fedimaging.runs import hospitals
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site, TrainInstruction
from fedimaging.study.schema import Study

NEVER = f"{(datetime.now() + timedelta(hours=6)):%H:00}-{(datetime.now() + timedelta(hours=7)):%H:00}"


@pytest.fixture
def site(tiny_study: Callable[..., Study], tmp_path: Path) -> Site:
    study = tiny_study("privacy.engine=loop")
    hospitals.make_federation(study, hospitals.load_data(study), tmp_path, "cpu").save()
    return open_simulated_site(tmp_path, 0)


@pytest.mark.parametrize(("rule", "code"), [
    ({"minimum_noise_multiplier": 99.0}, "against_policy"), ({"minimum_patients": 999}, "against_policy"),
    ({"maximum_epochs": 0.5}, "against_policy"), ({"maximum_rounds": 1}, "against_policy"),
    ({"minimum_hospitals": 2}, "against_policy"), ({"tasks": ("segmentation",)}, "against_policy"),
    ({"allow_simulated_noise": False}, "privacy"), ({"train_hours": (NEVER,)}, "outside_hours"),
], ids=str)  # fmt: skip
def test_a_study_against_the_policy_is_refused_and_nothing_is_charged(rule: dict[str, Any], code: str, site: Site) -> None:
    strict = replace(site, policy=site.policy.model_copy(update=rule))
    with pytest.raises(SiteRefusal) as caught:
        strict.train(TrainInstruction(strict.fingerprint, 1, strict.bench.initial))
    assert caught.value.code == code
    assert not (site.folder / "ledger.sqlite").exists()
    site.train(TrainInstruction(site.fingerprint, 1, site.bench.initial))
    assert (site.folder / "ledger.sqlite").exists()
