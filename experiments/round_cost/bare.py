"""The bare training loop that a federation is measured against: no Flower, no ledger, no report.

The same network, batches, local steps and rounds, with plain averaging between rounds, on the same prepared arrays;
one process with all threads, or one process a core (forked after the imports, hospitals dealt out). Whole-process time.
"""

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import DenseNet
from torch import nn


def build(case: dict[str, Any]) -> nn.Module:
    """The MONAI DenseNet of the case with GroupNorm in the groups that the federation builds."""
    torch.manual_seed(0)
    model = DenseNet(spatial_dims=2, in_channels=1, out_channels=2, **case["network"])
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(case["groups"][str(child.num_features)], child.num_features))
    return model


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, case: dict[str, Any]) -> None:
    """One round of one hospital."""
    optimizer = torch.optim.SGD(model.parameters(), case["learning_rate"], momentum=0.9)
    order = np.random.default_rng(0).permutation(len(rows))
    for first in range(0, len(rows), case["batch"]):
        chosen = rows[order[first : first + case["batch"]]]
        x, y = torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def hospitals_of(task: tuple[list[np.ndarray], torch.Tensor]) -> torch.Tensor:
    """Train some hospitals from these weights; returns the sum of their end weights."""
    rows_of, start = task
    total = torch.zeros_like(start)
    for rows in rows_of:
        nn.utils.vector_to_parameters(start, MODEL.parameters())
        train(MODEL, IMAGES, LABELS, rows, CASE)
        total += nn.utils.parameters_to_vector(MODEL.parameters()).detach()
    return total


def one_thread() -> None:
    """A worker's share of the cores."""
    torch.set_num_threads(1)


def main() -> None:
    """Run the case to its end."""
    weights = nn.utils.parameters_to_vector(MODEL.parameters()).detach().clone()
    if ARGS.processes == 1:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        for _ in range(CASE["rounds"]):
            weights = hospitals_of((SITES, weights)) / len(SITES)
    else:
        with multiprocessing.get_context("fork").Pool(ARGS.processes, one_thread) as pool:
            for _ in range(CASE["rounds"]):
                tasks = [(SITES[i :: ARGS.processes], weights) for i in range(ARGS.processes)]
                weights = torch.stack(pool.map(hospitals_of, tasks)).sum(0) / len(SITES)
    print(f"weights' norm {float(weights.norm()):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    ARGS = parser.parse_args()
    torch.set_num_threads(1)
    CASE = json.loads(ARGS.case.read_text())
    IMAGES = np.load(CASE["images"], mmap_mode="r")
    LABELS = np.load(CASE["labels"])
    with np.load(CASE["federation"]) as federation:
        SITES = [np.flatnonzero(federation["train_site"] == k) for k in range(federation["train_site"].max() + 1)]
    MODEL = build(CASE)
    main()
