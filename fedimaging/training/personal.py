"""A hospital's own model: plain steps on its own patients, pulled towards the shared model. Not private; it stays where it is."""

from collections.abc import Callable

import numpy as np
import torch

from fedimaging.training.lean_optimizer import step as optimizer_step
from fedimaging.training.local import make_optimizer, plain_gradients
from fedimaging.training.spec import PersonalSpec
from fedimaging.training.workbench import SiteRecords, Workbench


def personal_steps(
    bench: Workbench, start: np.ndarray, anchor: np.ndarray, records: SiteRecords, spec: PersonalSpec, *, key: str,
    after_step: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The full vector (V,) after `spec.steps` steps from `start` (V,), each pulled to the shared model `anchor` (V,).

    A step of the optimizer on the loss alone is followed by the exact proximal step of mu/2 |v - anchor|²: v becomes
    (v + r mu anchor) / (1 + r mu), r the learning rate. So any mu is stable, and an endless one gives the anchor (Li et al. 2021,
    Ditto, algorithm 1, with the implicit step in place of the explicit one). The same key gives the same result.
    """
    bench.load(start)
    if not bench.model.training:
        bench.model.train()
    parameters = bench.parameters()
    optimizer = make_optimizer(bench.training, parameters, spec.learning_rate)
    pull = spec.learning_rate * spec.mu
    towards = bench.pieces(anchor)
    for _ in plain_gradients(bench, records, key, 0, spec.steps):
        optimizer_step(optimizer)
        if pull:
            with torch.no_grad():
                for parameter, centre in zip(parameters, towards, strict=True):
                    parameter.lerp_(centre, pull / (1 + pull))
        after_step()
    bench.forget_gradients()
    return bench.vector()
