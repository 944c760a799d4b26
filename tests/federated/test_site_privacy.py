import json
import math
from pathlib import Path

import numpy as np
import pytest

from fedimaging.aggregation.site_privacy import SitePrivacySpec
from fedimaging.errors import RunError
from fedimaging.federated.site_privacy import PrivateMeans
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.noise import SecureNoise, SimulatedNoise

SPEC = SitePrivacySpec(clip_norm=1.0, noise_multiplier=7.334477)  # epsilon 3 over 50 rounds at delta 1e-3


def means(folder: Path) -> PrivateMeans:
    return PrivateMeans(SPEC, folder, lambda round: SimulatedNoise(0, "server", round))


def released(made: PrivateMeans, round: int, size: int = 4) -> np.ndarray:
    mean = made(round, 5)
    mean.add(np.zeros(size, np.float32))
    return mean.result()


def test_fifty_rounds_cost_what_the_vectors_say(tmp_path: Path) -> None:
    made = means(tmp_path)
    assert (made.releases, made.epsilon) == (0, 0.0)
    for round in range(1, 51):
        released(made, round)
    assert made.releases == 50
    assert made.epsilon == pytest.approx(3.0, abs=1e-4)
    assert epsilon([Charge(SPEC.noise_multiplier, 1.0, 50, "patient")], SPEC.delta) == pytest.approx(made.epsilon, abs=3e-3)


def test_only_what_is_released_is_counted_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    made = means(tmp_path)
    made(1, 5).add(np.zeros(4))  # a round that failed: no mean was made
    assert made.releases == 0
    released(made, 1)
    released(means(tmp_path), 1)  # run again after a crash: seen twice, perhaps
    assert means(tmp_path).releases == 2
    assert [json.loads(line)["round"] for line in (tmp_path / "site_privacy.jsonl").read_text().splitlines()] == [1, 1]
    with (tmp_path / "site_privacy.jsonl").open("a") as file:
        file.write('{"rou')
    assert means(tmp_path).releases == 3


def test_it_is_counted_before_the_noise_is_drawn(tmp_path: Path) -> None:
    def dies(round: int) -> SimulatedNoise:
        assert (tmp_path / "site_privacy.jsonl").read_text().count("\n") == 1
        raise MemoryError

    made = PrivateMeans(SPEC, tmp_path, dies)
    with pytest.raises(MemoryError):
        released(made, 1)
    assert made.releases == 1


def test_a_disk_that_takes_nothing_stops_the_round(tmp_path: Path) -> None:
    made = means(tmp_path / "missing")
    with pytest.raises(RunError, match="cannot write"):
        released(made, 1)


def test_noise_of_each_round_is_its_own_and_of_the_stated_size(tmp_path: Path) -> None:
    made = means(tmp_path)
    one, two = released(made, 1, 50_000), released(made, 2, 50_000)
    for vector in (one, two):
        assert vector.std() == pytest.approx(SPEC.noise_multiplier / 5, rel=0.02)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
    secure = PrivateMeans(SPEC, tmp_path, lambda round: SecureNoise())
    assert released(secure, 1, 50_000).std() == pytest.approx(SPEC.noise_multiplier / 5, rel=0.03)
    assert (secure.noise, made.noise) == ("secure", "simulated")
    assert math.isfinite(secure.epsilon)
