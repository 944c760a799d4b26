"""What is exported predicts as what was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedimaging.errors import ReleaseError
from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import build_model
from fedimaging.release.export import export, rebuilt
from fedimaging.release.inference import load_script
from fedimaging.release.source import open_run
from fedimaging.study.load import load


@pytest.mark.parametrize(("name", "options", "size", "classes"), [
    ("small_cnn", {"width": 4}, (16, 16), 2), ("densenet", {}, (32, 32), 3),
    ("vit", {"patch_size": 8, "hidden_size": 24, "mlp_dim": 24, "num_layers": 1, "num_heads": 3}, (16, 16), 2),
    ("small_cnn", {"width": 4}, (16, 16, 16), 2), ("unet", {}, (16, 16, 16), 3),
])  # fmt: skip
def test_networks_are_exported_equal_for_any_batch(
    name: str, options: dict[str, int], size: tuple[int, ...], classes: int, tmp_path: Path
) -> None:
    network = build_model(ModelSpec(name=name, options=options), in_channels=1, out_channels=classes, image_size=size, seed=1)
    images = np.random.default_rng(0).random((5, 1, *size), np.float32)
    found = export(network.eval(), images, tmp_path)
    assert found["largest_difference"] <= 1e-5
    assert found["compared_inputs"] == 2 * (1 + 2 + 3 + 4) + 4 + 5
    x = torch.from_numpy(images)
    with torch.no_grad():
        assert torch.allclose(load_script(tmp_path / "model.ts")(x), network(x), atol=1e-5)


def test_a_network_that_looks_at_its_input_twice_is_refused(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3))[:, None] * (2.0 if float(x.mean()) > 0.7 else 1.0)

    with pytest.raises(ReleaseError, match="differs from the trained one"):
        export(Branching().eval(), np.zeros((1, 1, 8, 8), np.float32), tmp_path)


def test_the_network_is_rebuilt_from_the_release_alone(released: Path, finished: Path) -> None:
    network = rebuilt(load(released / "study.yaml"), released / "bundle" / "models" / "model.pt")
    source = open_run(finished)
    x = torch.from_numpy(np.array(source.dataset.images[:8]))
    with torch.no_grad():
        assert torch.equal(network(x), source.bench.model(x))
    with pytest.raises(ReleaseError, match="not of the study's network"):
        rebuilt(load(released / "study.yaml", ["model.options={scales: 2}"]), released / "bundle" / "models" / "model.pt")
