"""Explanation maps: shape and scale for every classifier, the right place on known answers, and the sanity checks of
Adebayo et al. 2018 (Sanity Checks for Saliency Maps): other weights must give another map."""

import numpy as np
import pytest
import torch
from torch import nn

from fedimaging.errors import StudyError
from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import CLASSIFIERS, build_model
from fedimaging.training.explain import Method, saliency, uncertainty
from fedimaging.training.explain_layer import target_layers
from fedimaging.training.explain_sanity import likeness, top_share
from tests.models.tiny import CASES, image_size, scans, shared

SQUARE = (slice(4, 12), slice(16, 24))
cases = [case for case in CASES if case[0] in CLASSIFIERS]


@pytest.mark.parametrize(("name", "dims"), cases, ids=[f"{name}_{dims}d" for name, dims in cases])
def test_every_classifier_has_a_map_of_its_scan_and_stays_as_it_was(name: str, dims: int) -> None:
    model, x = shared(name, dims), scans(name, dims, 1, seed=3)[0]
    before, mode = model(x[None]), model.training
    found = saliency(model, x, 1)
    assert found.values.shape == image_size(name, dims)
    assert found.values.dtype == np.float32
    assert found.values.min() >= 0
    assert found.values.max() == (1 if found.peak > 0 else 0)
    assert found.method == ("occlusion" if name == "wavelet_net" else "grad_cam")
    assert found.why
    assert torch.equal(model(x[None]), before)
    assert model.training == mode
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Brightness(nn.Module):
    """Class 1 for light at the top right: the known answer is `SQUARE`, whatever else is in the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.first.weight.data = torch.zeros(1, 1, 3, 3)
        self.first.weight.data[0, 0, 1, 1] = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = self.first(x)[(slice(None), slice(None), *SQUARE)].flatten(1).mean(1)
        return torch.stack([-light, light], 1)


def test_both_methods_mark_what_a_network_of_known_answer_looks_at() -> None:
    draw = np.random.default_rng(0)
    picture = (0.5 + 0.2 * draw.random((1, 32, 32))).astype(np.float32)
    picture[0, 8, 20] += 8
    cam = saliency(Brightness(), picture, 1, "grad_cam")
    assert cam.values[SQUARE].sum() == pytest.approx(cam.values.sum())
    assert np.unravel_index(cam.values.argmax(), (32, 32)) == (8, 20)
    hidden = saliency(Brightness(), picture, 1, "occlusion")
    assert hidden.values[SQUARE].sum() > 0.6 * hidden.values.sum()
    row, column = np.unravel_index(hidden.values.argmax(), (32, 32))
    assert max(abs(row - 8), abs(column - 20)) <= 2
    assert hidden.peak > 0
    assert saliency(Brightness(), picture, 0, "occlusion").values[8, 20] == 0  # it speaks against the other class


def test_a_scan_that_says_nothing_for_the_class_gives_an_empty_map() -> None:
    found = saliency(Brightness(), np.zeros((1, 32, 32), np.float32), 1, "occlusion")
    assert found.peak == 0
    assert not found.values.any()


def test_the_layers_are_the_last_of_every_resolution() -> None:
    x = torch.zeros(1, 1, 48, 48)

    def of(name: str, **options: object) -> nn.Module:
        spec = ModelSpec.model_validate({"name": name, "options": options})
        return build_model(spec, in_channels=1, out_channels=2, image_size=(48, 48), seed=0)

    cnn = target_layers(of("small_cnn"), x)
    assert [(one.name, one.grid) for one in cnn] == [
        ("features.2", (48, 48)), ("features.6", (24, 24)), ("features.10", (12, 12)), ("features", (6, 6))]
    dense = target_layers(of("densenet"), x)
    assert [(one.name, one.grid[0]) for one in dense] == [
        ("features.relu0", 24), ("features.transition1.conv", 12), ("features.transition2.conv", 6), ("class_layers.relu", 3)]
    (vit,) = target_layers(of("vit", patch_size=8, hidden_size=12, mlp_dim=16, num_layers=2, num_heads=2), x)
    assert (vit.name, vit.grid) == ("blocks.1.norm1", (6, 6))
    assert vit.spatial(torch.arange(37.0).reshape(1, 37, 1))[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert target_layers(of("wavelet_net"), x) == []


def test_what_cannot_be_explained_is_refused() -> None:
    x = scans("wavelet_net", 2, 1, 0)[0]
    with pytest.raises(StudyError, match="class_index=3"):
        saliency(shared("wavelet_net", 2), x, 3)
    with pytest.raises(StudyError, match="needs a layer that gives a map"):
        saliency(shared("wavelet_net", 2), x, 1, "grad_cam")
    with pytest.raises(StudyError, match="occlusion"):
        saliency(shared("wavelet_net", 2), x, 1, "oclusion")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="uncertainty"):
        saliency(shared("unet", 2), scans("unet", 2, 1, 0)[0], 1)


def patches(count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Noise (N, 1, 32, 32), the second half with a bright square of 6 pixels somewhere; masks (N/2, 32, 32) of those."""
    draw = np.random.default_rng(seed)
    x, masks = draw.normal(0, 0.5, (count, 1, 32, 32)), np.zeros((count // 2, 32, 32), bool)
    for number, (row, column) in enumerate(draw.integers(2, 24, (count // 2, 2))):
        masks[number, row : row + 6, column : column + 6] = True
        x[count // 2 + number, 0] += masks[number]
    return torch.from_numpy(x.astype(np.float32)), masks


def untrained(seed: int) -> nn.Module:
    spec = ModelSpec.model_validate({"name": "densenet", "options": {"init_features": 8, "growth_rate": 4}})
    return build_model(spec, in_channels=1, out_channels=2, image_size=(32, 32), seed=seed)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Finds the squares of `patches`."""
    model, (x, _) = untrained(0), patches(256, seed=0)
    y = torch.arange(256) // 128
    optimizer, draw = torch.optim.Adam(model.parameters(), 0.01), torch.Generator().manual_seed(0)
    for _ in range(120):
        rows = torch.randint(0, 256, (32,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("method", ["grad_cam", "occlusion"])
def test_maps_of_a_trained_network_lie_where_the_answer_is(trained: nn.Module, method: Method) -> None:
    """Of what the top twentieth of the pixels holds, at least 6 times the share that chance gives (36 of 1024 pixels)."""
    x, masks = patches(40, seed=1)
    with torch.no_grad():
        assert ((trained(x).argmax(1) == torch.arange(40) // 20).float().mean()) > 0.9
    maps = [saliency(trained, one, 1, method).values for one in x[20:]]
    assert np.mean([top_share(values, mask) for values, mask in zip(maps, masks, strict=True)]) > 6 * 36 / 1024


@pytest.mark.parametrize("method", ["grad_cam", "occlusion"])
def test_other_weights_give_another_map(trained: nn.Module, method: Method) -> None:
    """Mean rank correlation of the maps over 20 scans, with those of three networks of random weights: below 0.4."""
    x, _ = patches(40, seed=1)
    maps = [saliency(trained, one, 1, method).values for one in x[20:]]
    assert np.array_equal(saliency(trained, x[20], 1, method).values, maps[0])
    for seed in (0, 1, 2):
        others = [saliency(untrained(seed), one, 1, method).values for one in x[20:]]
        assert np.nanmean([likeness(a, b) for a, b in zip(maps, others, strict=True)]) < 0.4


class Halves(nn.Module):
    """Sure on the left, undecided on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(50.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.scale * x, torch.zeros_like(x)], 1)


def test_uncertainty_is_the_entropy_of_the_classes() -> None:
    x = np.zeros((1, 8, 8), np.float32)
    x[..., :4] = 1
    plain = uncertainty(Halves(), x, views=False)
    assert plain.shape == (8, 8)
    assert plain[:, 4:] == pytest.approx(1)
    assert plain[:, :4] == pytest.approx(0, abs=1e-6)
    moved = uncertainty(Halves(), x)
    assert moved[:, 1:3] == pytest.approx(0, abs=1e-6)
    assert moved[:, 4:] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("name", "dims"), [("unet", 2), ("unet", 3)])
def test_a_segmentation_has_a_map_of_uncertainty(name: str, dims: int) -> None:
    found = uncertainty(shared(name, dims), scans(name, dims, 1, seed=3)[0])
    assert found.shape == image_size(name, dims)
    assert 0 < found.min() <= found.max() <= 1
