import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import grad, vmap

from fedimaging.training.task_spec import TaskSpec
from fedimaging.training.tasks import (
    DICE_SMOOTHING,
    TASKS,
    dice_cross_entropy_losses,
    make_task,
    multilabel_losses,
)

SPECS = {
    "binary": TaskSpec(kind="binary", label="y"),
    "multiclass": TaskSpec(kind="multiclass", label="y", classes=4),
    "multilabel": TaskSpec(kind="multilabel", labels=("a", "b", "c")),
    "segmentation": TaskSpec(kind="segmentation", classes=3),
}
every_task = pytest.mark.parametrize("kind", SPECS)


def batch(kind: str, count: int, seed: int, spatial: tuple[int, ...] = (4, 5)) -> tuple[Tensor, Tensor]:
    task, generator = make_task(SPECS[kind]), torch.Generator().manual_seed(seed)
    if kind == "segmentation":
        shape = (count, *spatial)
        outputs = torch.randn((count, task.out_channels, *spatial), generator=generator)
        return outputs, torch.randint(0, 3, shape, generator=generator).to(torch.uint8)
    outputs = torch.randn((count, task.out_channels), generator=generator)
    if kind == "multilabel":
        return outputs, torch.randint(0, 2, outputs.shape, generator=generator).float()
    return outputs, torch.randint(0, task.out_channels, (count,), generator=generator)


def test_every_kind_is_here() -> None:
    assert set(TASKS) == set(SPECS)


def test_the_task_tells_what_it_needs() -> None:
    tasks = {kind: make_task(spec) for kind, spec in SPECS.items()}
    assert {kind: task.out_channels for kind, task in tasks.items()} == {
        "binary": 2,
        "multiclass": 4,
        "multilabel": 3,
        "segmentation": 3,
    }
    assert [tasks[kind].label_columns for kind in SPECS] == [("y",), ("y",), ("a", "b", "c"), ()]
    assert [kind for kind, task in tasks.items() if task.needs_mask] == ["segmentation"]
    assert [kind for kind, task in tasks.items() if task.multilabel] == ["multilabel"]
    assert tasks["multilabel"].class_names == ("a", "b", "c")
    assert tasks["binary"].class_names == ("0", "1")
    named = TaskSpec(kind="binary", label="y", class_names=("well", "ill"))
    assert make_task(named).class_names == ("well", "ill")


@every_task
def test_one_loss_a_scan_in_float32(kind: str) -> None:
    outputs, targets = batch(kind, 5, seed=0)
    for given in (outputs, outputs.bfloat16(), outputs.double()):
        losses = make_task(SPECS[kind]).losses(given, targets)
        assert losses.shape == (5,)
        assert losses.dtype == torch.float32
        assert (losses > 0).all()


@every_task
def test_a_scan_s_loss_and_gradient_ignore_the_other_scans(kind: str) -> None:
    task = make_task(SPECS[kind])
    outputs, targets = batch(kind, 4, seed=1)
    others, other_targets = batch(kind, 4, seed=2)
    mixed = torch.cat([outputs[:1], others[1:]]).requires_grad_()
    losses = task.losses(mixed, torch.cat([targets[:1], other_targets[1:]]))
    alone = outputs[:1].clone().requires_grad_()
    loss = task.losses(alone, targets[:1])
    torch.testing.assert_close(losses[:1], loss, rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(losses[0], mixed)
    (expected,) = torch.autograd.grad(loss[0], alone)
    torch.testing.assert_close(gradient[:1], expected, rtol=1e-6, atol=1e-8)
    assert not gradient[1:].any()


@every_task
def test_losses_run_under_vmap(kind: str) -> None:
    task = make_task(SPECS[kind])
    outputs, targets = batch(kind, 6, seed=3)
    by_patient = vmap(grad(lambda o, t: task.losses(o, t).mean()))(outputs.unflatten(0, (3, 2)), targets.unflatten(0, (3, 2)))
    whole = outputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(task.losses(whole, targets).sum() / 2, whole)
    torch.testing.assert_close(by_patient.flatten(0, 1), expected)


@every_task
def test_no_scans_no_losses(kind: str) -> None:
    outputs, targets = batch(kind, 0, seed=0)
    assert make_task(SPECS[kind]).losses(outputs, targets).shape == (0,)


def test_cross_entropy_by_hand() -> None:
    losses = make_task(SPECS["binary"]).losses(torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([0, 1]))
    torch.testing.assert_close(losses, torch.tensor([math.log(2), math.log(4 / 3)]))


def test_multilabel_by_hand() -> None:
    losses = multilabel_losses(torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1, 0]]))
    torch.testing.assert_close(losses, torch.tensor([(math.log(2) + math.log(4)) / 2]))


def test_dice_and_cross_entropy_by_hand() -> None:
    # Two pixels, even odds: each gives log 2; Dice = (2 * 0.5 + s) / (1 + 1 + s).
    losses = dice_cross_entropy_losses(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
    dice = (1 + DICE_SMOOTHING) / (2 + DICE_SMOOTHING)
    torch.testing.assert_close(losses, torch.tensor([math.log(2) + 1 - dice]))


@pytest.mark.parametrize("spatial", [(6, 7), (3, 4, 5)])
def test_a_perfect_mask_costs_nothing_and_an_empty_one_is_finite(spatial: tuple[int, ...]) -> None:
    _, masks = batch("segmentation", 2, 4, spatial)
    masks[1] = 0
    perfect = 100.0 * torch.nn.functional.one_hot(masks.long(), 3).movedim(-1, 1).float()
    torch.testing.assert_close(dice_cross_entropy_losses(perfect, masks), torch.zeros(2))
    wrong = perfect.roll(1, dims=1).requires_grad_()
    losses = dice_cross_entropy_losses(wrong, masks)
    (gradient,) = torch.autograd.grad(losses.sum(), wrong)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()


@every_task
def test_scores_are_probabilities(kind: str) -> None:
    outputs, _ = batch(kind, 3, seed=5)
    scores = make_task(SPECS[kind]).scores(outputs.bfloat16())
    assert scores.shape == outputs.shape
    assert scores.dtype == torch.float32
    assert ((scores > 0) & (scores < 1)).all()
    if kind != "multilabel":
        torch.testing.assert_close(scores.sum(1), torch.ones_like(scores[:, 0]))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "binary"}, "give label, and no labels"),
        ({"kind": "binary", "label": "y", "labels": ["z"]}, "give label, and no labels"),
        ({"kind": "binary", "label": "y", "classes": 3}, "use kind 'multiclass'"),
        ({"kind": "multilabel", "label": "y"}, "a list of them, and no label"),
        ({"kind": "multilabel", "labels": ["a", "a"]}, "name a column twice"),
        ({"kind": "segmentation", "label": "y"}, "neither label nor labels"),
        ({"kind": "segmentation", "classes": 1}, "greater than or equal to 2"),
        ({"kind": "multiclass", "label": "y", "classes": 3, "class_names": ["a"]}, "1 names for 3 outputs"),
        ({"kind": "regression", "label": "y"}, "'binary', 'multiclass', 'multilabel' or 'segmentation'"),
    ],
)
def test_a_task_that_does_not_fit_together(fields: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TaskSpec.model_validate(fields)
