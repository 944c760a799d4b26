"""Local training: every network takes a private round; sigma 0 and a huge clip give plain SGD; keys decide everything."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedimaging.data.dataset import Dataset
from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import CLASSIFIERS
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.privacy.spec import PrivacySpec
from fedimaging.training.evaluate import predict
from fedimaging.training.local import Progress, plain_steps, train_locally
from fedimaging.training.spec import LocalTraining
from fedimaging.training.task_spec import TaskSpec
from fedimaging.training.workbench import SiteRecords, Workbench, build_workbench
from tests.models.tiny import TINY, image_size

PRIVACY = PrivacySpec(noise_multiplier=1.0, engine="loop", max_scans_per_patient=2)


def _records(size: tuple[int, ...], patients: int = 4, scans: int = 2) -> SiteRecords:
    rng = np.random.default_rng(0)
    n = patients * scans
    images = rng.normal(size=(n, 1, *size)).astype(np.float32)
    ids = np.repeat([f"p{i}" for i in range(patients)], scans)
    masks = (images[:, 0] > 0.5).astype(np.uint8)
    dataset = Dataset(images, rng.integers(0, 2, n), masks, ids, np.full(n, "train"), {}, None, "none")
    return SiteRecords(dataset, np.arange(n))


def _bench(name: str = "small_cnn", training: dict[str, Any] | None = None, **keys: Any) -> Workbench:
    kind = {"kind": "binary", "label": "label"} if name in CLASSIFIERS else {"kind": "segmentation"}
    settings: dict[str, Any] = {"proximal_mu": 0.0, "local_parameters": "none", "privacy": PRIVACY, "rounds": 5, **keys}
    return build_workbench(
        model=ModelSpec.model_validate({"name": name, "options": TINY[name], **settings.pop("model", {})}),
        task=TaskSpec.model_validate(kind),
        training=LocalTraining.model_validate({"learning_rate": 0.1, "batch_size": 4, "local_steps": 2, **(training or {})}),
        channels=1, image_size=image_size(name, 2), seed=0, device="cpu", **settings,
    )


def _plan(**changes: Any) -> DpPlan:
    plan = DpPlan("patient", 4, 0.75, 1.0, 1.0, 1e-3, 2, 5, engine="loop")
    return replace(plan, **changes)


@pytest.mark.parametrize("name", [name for name in TINY if not name.startswith("torchvision")])
def test_every_network_takes_a_private_round(name: str) -> None:
    bench, records = _bench(name), _records(image_size(name, 2))
    result = train_locally(bench, bench.initial, records, _plan(), SimulatedNoise(0, "h", 1), key="k", round=1)
    moved = np.abs(result.end - bench.initial)
    assert result.steps == 2
    assert np.isfinite(result.end).all()
    assert (moved > 0).mean() > 0.99  # noise reaches every trainable number


def test_without_noise_and_clip_a_private_step_is_a_plain_full_batch_step() -> None:
    training = {"local_steps": 1, "batch_size": 8}
    bench, records = _bench(training=training), _records((16, 16))
    plain = train_locally(bench, bench.initial, records, None, None, key="k", round=1)
    plan = _plan(sample_rate=1.0, noise_multiplier=0.0, clip_norm=1e9, steps_per_round=1)
    private = train_locally(bench, bench.initial, records, plan, SimulatedNoise(0, "h", 1), key="k", round=1)
    np.testing.assert_allclose(private.end, plain.end, atol=1e-6)


def test_a_round_in_which_nobody_is_drawn_still_moves_by_noise() -> None:
    bench, records = _bench(), _records((16, 16))
    plan = _plan(sample_rate=1e-12, n_units=4, steps_per_round=1)
    result = train_locally(bench, bench.initial, records, plan, SimulatedNoise(0, "h", 1), key="k", round=1)
    sd = 0.1 * 1.0 / (1e-12 * 4)
    assert np.isclose((result.end - bench.initial).std() / sd, 1.0, atol=0.1)


def test_the_key_decides_and_global_randomness_does_not() -> None:
    bench, records = _bench(training={"augment": {"flip": True, "shift": 0.1}}), _records((16, 16))
    ends = []
    for key, seed in (("a", 1), ("a", 2), ("b", 1)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        ends.append(train_locally(bench, bench.initial, records, None, None, key=key, round=1).end)
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_proximal_term_pulls_towards_the_start() -> None:
    records = _records((16, 16))
    distance = []
    for mu in (0.0, 5.0):
        bench = _bench(training={"local_steps": 20}, proximal_mu=mu)
        end = train_locally(bench, bench.initial, records, None, None, key="k", round=1).end
        distance.append(np.linalg.norm(end - bench.initial))
    assert distance[1] < 0.8 * distance[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_optimizer_learns_the_training_scans(optimizer: str) -> None:
    bench, records = _bench(training={"optimizer": optimizer, "learning_rate": 0.02, "local_steps": 40}), _records((16, 16))
    losses = []
    for vector in (bench.initial, train_locally(bench, bench.initial, records, None, None, key="k", round=1).end):
        bench.load(vector)
        losses.append(np.mean([loss.mean() for _, _, loss in predict(bench, records)]))
    assert losses[1] < losses[0]


def test_steps_of_a_round() -> None:
    assert plain_steps(_bench(training={"local_steps": None, "local_epochs": 2, "batch_size": 4}), 9) == 6
    assert plain_steps(_bench(training={"local_steps": None, "local_epochs": 0.1, "batch_size": 4}), 9) == 1
    assert plain_steps(_bench(training={"local_steps": 7}), 9) == 7


def test_cosine_schedule_falls_from_the_rate_to_a_tenth() -> None:
    spec = LocalTraining(learning_rate=1.0, schedule="cosine", batch_size=1, local_steps=1)
    rates = [spec.learning_rate_in(r, 5) for r in range(1, 6)]
    assert np.allclose(rates[0], 1.0)
    assert np.allclose(rates[-1], 0.1)
    assert rates == sorted(rates, reverse=True)


def test_the_vector_and_the_network_say_the_same() -> None:
    bench = _bench()
    vector = np.arange(len(bench.initial), dtype=np.float32)
    bench.load(vector)
    assert np.array_equal(bench.vector(), vector)
    assert np.array_equal(np.concatenate([a.ravel() for a in bench.named_arrays(vector).values()]), vector)


def test_what_stays_at_the_hospital_is_no_part_of_the_shared_vector() -> None:
    sizes = {kind: _bench(local_parameters=kind).shared_size for kind in ("none", "norm", "head")}
    assert sizes["norm"] < sizes["none"]
    assert sizes["head"] < sizes["none"]
    assert not _bench(local_parameters="norm").all_shared


@pytest.mark.parametrize("private", [True, False], ids=["private", "plain"])
@pytest.mark.parametrize("optimizer", [
    {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "adam"}, {"optimizer": "adamw"},
], ids=str)  # fmt: skip
def test_a_round_gone_on_with_ends_with_the_same_bits(optimizer: dict[str, Any], private: bool) -> None:
    training = {"batch_size": 3, "local_steps": 5, "augment": {"flip": True, "shift": 0.1}, **optimizer}
    bench, records = _bench(training=training, proximal_mu=0.1), _records((16, 16))
    plan, noise = (_plan(steps_per_round=5), SimulatedNoise(0, "h", 1)) if private else (None, None)
    start, kept = bench.initial + np.float32(0.01), []

    def keep(steps: int, progress: Any) -> None:
        kept.append(progress() if steps in (1, 3) else None)

    whole = train_locally(bench, start, records, plan, noise, key="k", round=1, after_step=keep)
    assert [None if p is None else p.steps for p in kept] == [1, None, 3, None, None]
    for progress in (kept[0], kept[2]):
        assert isinstance(progress, Progress)
        bench.load(bench.initial)
        again = train_locally(bench, start, records, plan, noise, key="k", round=1, resume=progress)
        assert again.steps == 5
        np.testing.assert_array_equal(again.end, whole.end)


def test_what_after_step_raises_ends_the_round() -> None:
    bench, records = _bench(training={"local_steps": 5}), _records((16, 16))
    taken = []

    def stop(steps: int, progress: Any) -> None:
        taken.append(steps)
        if steps == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_locally(bench, bench.initial, records, None, None, key="k", round=1, after_step=stop)
    assert taken == [1, 2]
