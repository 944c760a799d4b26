"""Patients who never lived, in the shape of a study's scans: what an inversion may show in a picture."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedimaging.data.spec import PhantomSpec
from fedimaging.data.synthetic import draw_scans, render
from fedimaging.runs.audit_target import Target


@dataclass(frozen=True)
class Phantoms:
    """x (K, C, *spatial) float32 in [0, 1], y (K, ...): targets of the study's task."""

    x: Tensor
    y: Tensor


def phantoms(target: Target, count: int) -> Phantoms:
    """So many generated patients, one scan each. The study's own patients are not read."""
    data, task = target.study.data, target.bench.task
    spec = PhantomSpec(
        patients=count, hospitals=1, scans_per_patient=(1, 1), dims=2 if len(data.image_size) == 2 else 3,
        prevalence=(0.5, 0.5), seed=target.seed("phantoms"),
    )  # fmt: skip
    people = draw_scans(spec)
    scans = list(render(spec, people, data.image_size))
    x = np.stack([scan.image for scan in scans]).astype(np.float32) / 255
    x = np.repeat(x, data.channels, axis=1)
    if task.kind == "segmentation":
        y = torch.from_numpy(np.stack([scan.mask for scan in scans]))
    elif task.kind == "multilabel":
        labels = np.zeros((count, task.out_channels), np.float32)
        labels[:, 0] = people.labels["lesion"]
        y = torch.from_numpy(labels)
    else:
        y = torch.from_numpy(np.asarray(people.labels["kind"] % task.out_channels, np.int64))
    return Phantoms(torch.from_numpy(x).to(target.bench.device), y.to(target.bench.device))
