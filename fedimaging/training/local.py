"""Training at one hospital between two exchanges: ordinary mini-batches, or private steps over patients."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedimaging.data.augment import augment
from fedimaging.errors import PrivacyError
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import NoiseSource
from fedimaging.privacy.units import draw_scans, group_units
from fedimaging.training.lean_optimizer import step as optimizer_step
from fedimaging.training.lean_optimizer import without_compiler
from fedimaging.training.workbench import SiteRecords, Workbench


@dataclass(frozen=True)
class LocalResult:
    """`end`: the full vector after training, float32 (V,). `steps`: optimizer steps taken."""

    end: np.ndarray
    steps: int


def train_locally(
    bench: Workbench, start: np.ndarray, records: SiteRecords, plan: DpPlan | None, noise: NoiseSource | None, *,
    key: str, round: int,
) -> LocalResult:
    """Train one round from `start` (V,).

    With a plan every step is one private step of it: units drawn by Poisson sampling, clipped, noised, divided by the
    public constant; without one, shuffled mini-batches. `key` decides the shuffling and augmentation: the same key
    gives the same result on the same machine and threads. `proximal_mu` pulls towards the start after the noise, as a
    term free of data (FedProx, Li et al. 2020), so it costs no privacy.
    """
    bench.load(start)
    if not bench.model.training:
        bench.model.train()
    parameters = bench.parameters()
    optimizer = _optimizer(bench, parameters, round)
    anchor = [p.detach().clone() for p in parameters] if bench.proximal_mu else []
    steps = 0
    for _ in (
        _plain_gradients(bench, records, key) if plan is None or noise is None
        else _private_gradients(bench, records, plan, noise)
    ):
        for parameter, centre in zip(parameters, anchor, strict=False):
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - centre, alpha=bench.proximal_mu)
        optimizer_step(optimizer)
        steps += 1
    bench.forget_gradients()
    return LocalResult(bench.vector(), steps)


def plain_steps(bench: Workbench, n_records: int) -> int:
    """Steps of one round without privacy for a hospital with so many scans."""
    return bench.training.steps(-(-n_records // bench.training.batch_size))


def _optimizer(bench: Workbench, parameters: list[torch.nn.Parameter], round: int) -> torch.optim.Optimizer:
    without_compiler()
    spec = bench.training
    rate = spec.learning_rate_in(round, bench.rounds)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=spec.momentum, weight_decay=spec.weight_decay, foreach=True)
    kind = torch.optim.Adam if spec.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, weight_decay=spec.weight_decay, foreach=True)


def _plain_gradients(bench: Workbench, records: SiteRecords, key: str) -> Iterator[None]:
    """After each yield `.grad` holds the mean loss's gradient of the next mini-batch."""
    generator = _generator(f"{key}/order")
    network = bench.network(records)
    places = _shuffled(len(records), bench.training.batch_size, generator)
    for step in range(plain_steps(bench, len(records))):
        x, y = _batch(bench, records, next(places), _torch_generator(f"{key}/augment/{step}"))
        bench.forget_gradients()
        bench.task.losses(network(x), y).mean().backward()
        yield


def _shuffled(n: int, batch: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        order = generator.permutation(n)
        for first in range(0, n, batch):
            yield order[first : first + batch]


def _private_gradients(bench: Workbench, records: SiteRecords, plan: DpPlan, noise: NoiseSource) -> Iterator[None]:
    """After each yield `.grad` holds the next private gradient (noise alone where nobody was drawn)."""
    spec = bench.privacy
    if spec is None:
        raise PrivacyError("a private plan was given to a study without a privacy block.")
    network = bench.network(records)
    units = group_units(records.patient_ids, plan.unit)
    parameters = bench.parameters()
    for step in range(plan.steps_per_round):
        included = noise.inclusion(step, len(units), plan.sample_rate)
        drawn = draw_scans(
            units, included, max_scans=spec.max_scans_per_patient, views=spec.views_per_patient,
            generator=noise.generator(step, "scans"),
        )
        seed = int(noise.generator(step, "augment").integers(2**62))
        x, y = _batch(bench, records, drawn.rows, torch.Generator().manual_seed(seed))
        gradients = private_gradient(
            network, bench.task.losses, x, y, torch.from_numpy(drawn.unit_of_scan).to(bench.device),
            drawn.n_units, plan, noise, step,
        )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        yield


def _batch(
    bench: Workbench, records: SiteRecords, places: np.ndarray, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    x, y = records.inputs(places), records.targets(places, bench.task.kind)
    spec = bench.training.augment
    if spec is not None and len(x):
        segmentation = bench.task.needs_mask
        x, masks = augment(x, y if segmentation else None, spec, generator)
        y = masks if segmentation and masks is not None else y
    return bench.placed(x), y.to(bench.device)


def _generator(key: str) -> np.random.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _torch_generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little"))
