"""What every network of the zoo promises, checked on every one of them."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedimaging.errors import StudyError
from fedimaging.models.spec import ModelSpec
from fedimaging.models.state import (
    head_parameter_names,
    load_trainable,
    model_fingerprint,
    norm_parameter_names,
    trainable_state,
)
from fedimaging.models.zoo import CLASSIFIERS, MODELS, build_model, check_options
from fedimaging.training.tasks import cross_entropy_losses, dice_cross_entropy_losses
from tests.models.tiny import CASES, CLASSES, TINY, build, image_size, labels, scans, shared

every_network = pytest.mark.parametrize(("name", "dims"), CASES, ids=[f"{name}_{dims}d" for name, dims in CASES])


def losses(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    return (cross_entropy_losses if name in CLASSIFIERS else dice_cross_entropy_losses)(outputs, targets)


def gradient_of_first(model: nn.Module, name: str, x: Tensor, y: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = losses(name, model(x), y)[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def test_every_network_is_checked() -> None:
    assert set(TINY) == set(MODELS) == {name for name, _ in CASES}


@every_network
def test_output_is_a_plain_tensor_of_the_promised_shape(name: str, dims: int) -> None:
    output = shared(name, dims)(scans(name, dims, 2, seed=1))
    assert type(output) is Tensor
    assert output.shape == ((2, CLASSES) if name in CLASSIFIERS else (2, CLASSES, *image_size(name, dims)))
    assert torch.isfinite(output).all()


@every_network
def test_another_patient_changes_nothing_of_a_patient(name: str, dims: int) -> None:
    model, y = shared(name, dims), labels(name, dims, 3)
    mine, theirs, others = scans(name, dims, 1, 1), scans(name, dims, 2, 2), 5 * scans(name, dims, 2, 3) + 1
    one, two = torch.cat([mine, theirs]), torch.cat([mine, others])
    torch.testing.assert_close(model(one)[0], model(two)[0], rtol=1e-6, atol=1e-6)
    before, after = gradient_of_first(model, name, one, y), gradient_of_first(model, name, two, y)
    assert before.norm() > 0
    assert (before - after).norm() <= 1e-6 * before.norm()


@every_network
def test_every_trainable_parameter_gets_a_gradient(name: str, dims: int) -> None:
    model = shared(name, dims)
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    x, y = scans(name, dims, 2, seed=1), labels(name, dims, 2)
    gradients = torch.autograd.grad(losses(name, model(x), y).sum(), list(parameters.values()), allow_unused=True)
    assert [k for k, g in zip(parameters, gradients, strict=True) if g is None] == []


@every_network
def test_gradients_per_patient_by_vmap_equal_those_one_by_one(name: str, dims: int) -> None:
    model = build(name, dims).double()
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    before = list(model.parameters())
    x = scans(name, dims, 4, seed=4).double().unflatten(0, (2, 2))
    y = labels(name, dims, 4).unflatten(0, (2, 2))

    def patient_loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, weights, (x,))
        return nn.functional.cross_entropy(outputs, y)

    detached = {k: p.detach() for k, p in parameters.items()}
    together = vmap(grad(patient_loss), in_dims=(None, 0, 0))(detached, x, y)
    for patient in range(2):
        loss = nn.functional.cross_entropy(model(x[patient]), y[patient])
        alone = torch.autograd.grad(loss, list(parameters.values()))
        rows = torch.cat([together[k][patient].flatten() for k in parameters])
        wanted = torch.cat([g.flatten() for g in alone])
        assert (rows - wanted).norm() <= 1e-9 * wanted.norm()
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


@every_network
def test_nothing_is_kept_from_one_batch_to_the_next(name: str, dims: int) -> None:
    model, x = shared(name, dims), scans(name, dims, 2, seed=5)
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    first = model(x)
    model(scans(name, dims, 2, seed=6))
    torch.testing.assert_close(model(x), first, rtol=0, atol=0)
    assert all(torch.equal(b, buffers[k]) for k, b in model.named_buffers())


@every_network
def test_the_seed_alone_decides_the_start(name: str, dims: int) -> None:
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    again, other = build(name, dims), build(name, dims, seed=1)
    assert torch.equal(torch.rand(1), expected)
    start = trainable_state(shared(name, dims))
    assert all(np.array_equal(v, start[k]) for k, v in trainable_state(again).items())
    assert any(not np.array_equal(v, start[k]) for k, v in trainable_state(other).items())
    assert model_fingerprint(again) == model_fingerprint(other) == model_fingerprint(shared(name, dims))


@every_network
def test_state_goes_out_and_in_again(name: str, dims: int) -> None:
    model = shared(name, dims)
    start = trainable_state(model)
    arrays = {k: v + np.float32(0.5) for k, v in start.items()}
    load_trainable(model, arrays)
    back = trainable_state(model)
    load_trainable(model, start)
    assert list(back) == list(arrays)
    assert all(v.dtype == np.float32 and np.array_equal(v, arrays[k]) for k, v in back.items())


@every_network
def test_head_and_norms_are_found(name: str, dims: int) -> None:
    model = shared(name, dims)
    named = dict(model.named_parameters())
    head = head_parameter_names(model)
    assert head
    assert any(named[k].shape[0] == CLASSES or named[k].shape[:2][-1] == CLASSES for k in head)
    norms = set(norm_parameter_names(model))
    assert not norms & set(head)
    assert bool(norms) == (name != "wavelet_net")


def test_trainable_head_and_norm_leave_the_rest_frozen() -> None:
    head = build("densenet", 2, trainable="head")
    assert tuple(trainable_state(head)) == head_parameter_names(head)
    norm = build("densenet", 2, trainable="norm")
    assert set(trainable_state(norm)) == set(head_parameter_names(norm)) | set(norm_parameter_names(norm))
    assert model_fingerprint(head) != model_fingerprint(norm)


@pytest.mark.parametrize("norm", ["group", "instance", "layer", "none"])
def test_each_norm_builds(norm: str) -> None:
    model = build("densenet", 2, norm=norm)
    assert bool(norm_parameter_names(model)) == (norm != "none")


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("unet", (20, 18), "use e.g. [20, 20]"),
        ("swin_unetr", (40, 64), "use e.g. [64, 64]"),
        ("vit", (20, 16), "use e.g. [24, 16]"),
        ("wavelet_net", (16, 16, 16), "use small_cnn"),
        ("torchvision_resnet18", (16, 16, 16), "use a MONAI network"),
        ("densenet121", (16, 16), "use larger images"),
        ("small_cnn", (16,), "must be 2 or 3"),
    ],
)
def test_a_size_that_does_not_fit_says_what_would(name: str, size: tuple[int, ...], says: str) -> None:
    with pytest.raises(StudyError, match=re.escape(says)):
        build_model(ModelSpec(name=name, options=TINY[name]), in_channels=1, out_channels=2, image_size=size, seed=0)


def test_channels_are_counted() -> None:
    with pytest.raises(StudyError, match="must be at least 1"):
        build_model(ModelSpec(), in_channels=0, out_channels=2, image_size=(16, 16), seed=0)


def test_colour_images_and_one_output() -> None:
    for name in ("small_cnn", "wavelet_net"):
        model = build_model(ModelSpec(name=name), in_channels=3, out_channels=1, image_size=(28, 28), seed=0)
        assert model(torch.rand(2, 3, 28, 28)).shape == (2, 1)


def test_options_are_checked_by_name_and_type() -> None:
    check_options("densenet", {"growth_rate": 4, "block_config": [1, 2]})
    with pytest.raises(StudyError, match="did you mean 'densenet121'"):
        check_options("densnet121", {})
    with pytest.raises(StudyError, match="did you mean 'growth_rate'"):
        check_options("densenet", {"grwth_rate": 4})
    with pytest.raises(StudyError, match=r"model\.options\.growth_rate='x' is not allowed"):
        check_options("densenet", {"growth_rate": "x"})
    with pytest.raises(StudyError, match="greater than or equal to 1"):
        check_options("densenet", {"growth_rate": 0})


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("basic_unet", {"features": [4] * 7}, "must be 6 numbers"),
        ("dynunet", {"strides": [2, 2, 2, 2]}, "must start with 1"),
        ("swin_unetr", {"feature_size": 13}, "multiple of 12"),
        ("vit", {"hidden_size": 10}, "multiple of num_heads"),
    ],
)
def test_options_that_do_not_fit_together(name: str, options: dict, says: str) -> None:
    with pytest.raises(StudyError, match=says):
        build_model(ModelSpec(name=name, options=options), in_channels=1, out_channels=2, image_size=(64, 64), seed=0)
