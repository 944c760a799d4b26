"""Training at one hospital between two exchanges: ordinary mini-batches, or private steps over patients."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedimaging.data.augment import augment
from fedimaging.errors import PrivacyError
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import NoiseSource
from fedimaging.privacy.units import draw_scans, group_units
from fedimaging.results import Arrays
from fedimaging.training.balance import rates_of, relative_rates, thinned
from fedimaging.training.lean_optimizer import step as optimizer_step
from fedimaging.training.lean_optimizer import without_compiler
from fedimaging.training.spec import LocalTraining
from fedimaging.training.workbench import SiteRecords, Workbench


@dataclass(frozen=True)
class LocalResult:
    """`end`: the full vector after training, float32 (V,). `steps`: optimizer steps taken."""

    end: np.ndarray
    steps: int


@dataclass(frozen=True)
class Progress:
    """A round after `steps` of its steps: the full vector (V,) as it stands, and the optimizer's arrays, "place/name"."""

    steps: int
    vector: np.ndarray
    optimizer: Arrays


AfterStep = Callable[[int, Callable[[], Progress]], None]
"""Called after each step with the number of steps taken, and a function that copies the progress."""


def train_locally(
    bench: Workbench, start: np.ndarray, records: SiteRecords, plan: DpPlan | None, noise: NoiseSource | None, *,
    key: str, round: int, resume: Progress | None = None, after_step: AfterStep | None = None,
) -> LocalResult:
    """Train one round from `start` (V,).

    With a plan every step is one private step of it: units drawn by Poisson sampling, clipped, noised, divided by the
    public constant; without one, shuffled mini-batches. `key` decides the shuffling and augmentation: the same key
    gives the same result on the same machine and threads. `proximal_mu` pulls towards the start after the noise, as a
    term free of data (FedProx, Li et al. 2020), so it costs no privacy.

    resume: go on with a round of the same start; its steps are counted, and with the same `key` and a noise that follows
    from the step the end is the same bit for bit. An error that `after_step` raises ends the round.
    """
    bench.load(start)
    if not bench.model.training:
        bench.model.train()
    parameters = bench.parameters()
    optimizer = make_optimizer(bench.training, parameters, bench.training.learning_rate_in(round, bench.rounds))
    anchor = [p.detach().clone() for p in parameters] if bench.proximal_mu else []
    if resume is not None:
        bench.load(resume.vector)
        _load_optimizer(optimizer, parameters, resume.optimizer)
    steps = resume.steps if resume is not None else 0
    for _ in (
        plain_gradients(bench, records, key, steps, plain_steps(bench, len(records))) if plan is None or noise is None
        else _private_gradients(bench, records, plan, noise, steps)
    ):
        for parameter, centre in zip(parameters, anchor, strict=False):
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - centre, alpha=bench.proximal_mu)
        optimizer_step(optimizer)
        steps += 1
        if after_step is not None:
            after_step(steps, partial(_progress, steps, bench, optimizer))
    bench.forget_gradients()
    return LocalResult(bench.vector(), steps)


def plain_steps(bench: Workbench, n_records: int) -> int:
    """Steps of one round without privacy for a hospital with so many scans."""
    return bench.training.steps(-(-n_records // bench.training.batch_size))


def make_optimizer(spec: LocalTraining, parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The optimizer of a study, new, at this learning rate."""
    without_compiler()
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=spec.momentum, weight_decay=spec.weight_decay, foreach=True)
    kind = torch.optim.Adam if spec.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, weight_decay=spec.weight_decay, foreach=True)


def _progress(steps: int, bench: Workbench, optimizer: torch.optim.Optimizer) -> Progress:
    arrays = {
        f"{place}/{name}": value.detach().cpu().numpy().copy()
        for place, parameter in enumerate(bench.parameters())
        for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)
    }
    return Progress(steps, bench.vector(), arrays)


def _load_optimizer(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], arrays: Arrays) -> None:
    for key, array in arrays.items():
        place, _, name = key.partition("/")
        parameter = parameters[int(place)]
        value = torch.from_numpy(array.copy())
        # Adam counts its steps on the CPU, wherever the parameters are.
        optimizer.state[parameter][name] = value if name == "step" else value.to(parameter.device)


def plain_gradients(bench: Workbench, records: SiteRecords, key: str, first: int, steps: int) -> Iterator[None]:
    """After each yield `.grad` holds the mean loss's gradient of the next mini-batch; the first so many are skipped."""
    generator = _generator(f"{key}/order")
    network = bench.network(records)
    places = _shuffled(len(records), bench.training.batch_size, generator, _chances(bench, records, key))
    for step, chosen in zip(range(steps), places, strict=False):
        if step < first:
            continue
        x, y = _batch(bench, records, chosen, _torch_generator(f"{key}/augment/{step}"))
        bench.forget_gradients()
        bench.task.losses(network(x), y).mean().backward()
        yield


def _shuffled(
    n: int, batch: int, generator: np.random.Generator, kept: Callable[[], np.ndarray] | None
) -> Iterator[np.ndarray]:
    """Mini-batches of pass after pass; `kept()` (N,) bool: who is in the next pass, None for everybody in every one."""
    while True:
        order = generator.permutation(n)
        if kept is not None:
            order = order[kept()[order]]
        for first in range(0, len(order), batch):
            yield order[first : first + batch]


def _chances(bench: Workbench, records: SiteRecords, key: str) -> Callable[[], np.ndarray] | None:
    """With `training.balance`, which scans are in a pass: a patient's all or none, by the rate of the patient's group over that
    of the group drawn most here, so that no pass waits for somebody who is not there."""
    spec = bench.training.balance
    if spec is None:
        return None
    units, generator = group_units(records.patient_ids, "patient"), _generator(f"{key}/balance")
    rates = rates_of(records, units, spec.column, relative_rates(spec))
    unit_of_row = np.empty(len(records), np.int64)
    unit_of_row[units.order] = np.repeat(np.arange(len(units)), np.diff(units.starts))
    everybody = np.ones(len(units), dtype=bool)
    return lambda: thinned(everybody, rates / rates.max(), generator)[unit_of_row]


def _private_gradients(
    bench: Workbench, records: SiteRecords, plan: DpPlan, noise: NoiseSource, first: int
) -> Iterator[None]:
    """After each yield `.grad` holds the next private gradient (noise alone where nobody was drawn), from step `first`."""
    spec = bench.privacy
    if spec is None:
        raise PrivacyError("a private plan was given to a study without a privacy block.")
    network = bench.network(records)
    units = group_units(records.patient_ids, plan.unit)
    parameters, rates = bench.parameters(), None
    if plan.relative_rates and bench.training.balance is not None:
        rates = rates_of(records, units, bench.training.balance.column, plan.relative_rates)
    for step in range(first, plan.steps_per_round):
        included = noise.inclusion(step, len(units), plan.sample_rate)
        if rates is not None:
            included = thinned(included, rates, noise.generator(step, "balance"))
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
