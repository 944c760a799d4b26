"""Whitened components of fixed features: what fitting does to them, and how they come from a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedimaging.errors import StudyError
from fedimaging.models.spec import ModelSpec
from fedimaging.models.wavelets import WaveletNet
from fedimaging.models.zoo import build_model


def _images(count: int, seed: int) -> torch.Tensor:
    return torch.rand((count, 1, 12, 12), generator=torch.Generator().manual_seed(seed)).cumsum(-1)


def _net(components: int) -> WaveletNet:
    return WaveletNet(1, 2, (12, 12), scales=1, angles=4, grid=2, components=components)


def test_fitted_components_are_white_on_the_images_they_were_fitted_to() -> None:
    net, images = _net(6), _images(400, 0)
    net.fit_components(images, ridge=0.0)
    with torch.no_grad():
        white = (net._features(images) - net.centre) @ net.projection
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), atol=1e-3, rtol=0)


def test_the_layer_sees_vectors_of_norm_two_whatever_the_scan() -> None:
    net = _net(6)
    net.fit_components(_images(50, 0))
    seen: list[torch.Tensor] = []
    net.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(_images(5, 1) * 1000)
    torch.testing.assert_close(seen[0].norm(dim=1), torch.full((5,), 2.0))
    assert seen[0].shape == (5, 6)


def test_the_ridge_bounds_how_much_a_small_direction_is_blown_up() -> None:
    bare, ridged = _net(20), _net(20)
    bare.fit_components(_images(100, 0), ridge=0.0)
    ridged.fit_components(_images(100, 0), ridge=1.0)
    gains = bare.projection.norm(dim=0) / ridged.projection.norm(dim=0)
    assert gains[-1] > 2 * gains[0]
    assert gains[0] == pytest.approx(2**0.5, rel=1e-4)


def test_too_few_images_and_too_many_components_are_refused() -> None:
    with pytest.raises(StudyError, match="number of images=6 images are too few for 6 components"):
        _net(6).fit_components(_images(6, 0))
    with pytest.raises(StudyError, match="components=21 is above the 20 wavelet features of 1 channel"):
        _net(21)


def test_components_come_from_a_weights_file_and_from_nowhere_else(tmp_path: Path) -> None:
    options = {"scales": 1, "angles": 4, "grid": 2, "components": 6}
    with pytest.raises(ValueError, match="needs the components themselves"):
        ModelSpec.model_validate({"name": "wavelet_net", "options": options})
    fitted, path = _net(6), tmp_path / "components.safetensors"
    fitted.fit_components(_images(50, 0))
    save_file({"centre": fitted.centre, "projection": fitted.projection}, path)
    spec = ModelSpec.model_validate({"name": "wavelet_net", "options": options, "weights": str(path)})
    built = build_model(spec, in_channels=1, out_channels=2, image_size=(12, 12), seed=0)
    torch.testing.assert_close(built.get_buffer("projection"), fitted.projection, atol=0, rtol=0)
    save_file({"centre": fitted.centre}, path)
    with pytest.raises(StudyError, match="1 tensors are missing or of another shape, first 'projection'"):
        build_model(spec, in_channels=1, out_channels=2, image_size=(12, 12), seed=0)
