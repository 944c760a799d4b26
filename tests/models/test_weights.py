import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedimaging.errors import StudyError
from fedimaging.models.layout import Layout
from fedimaging.models.pretrained import torchvision_resnet18
from fedimaging.models.spec import ModelSpec
from fedimaging.models.state import model_fingerprint
from fedimaging.models.zoo import build_model


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision publishes it: 3 colours, 5 classes, running statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = torchvision_resnet18(Layout(3, 5, (32, 32)))
        model(torch.randn(4, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return path


def resnet(path: Path, **spec: object) -> nn.Module:
    model = ModelSpec.model_validate({"name": "torchvision_resnet18", "weights": str(path), **spec})
    return build_model(model, in_channels=1, out_channels=2, image_size=(32, 32), seed=0)


def read(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def test_body_is_loaded_head_is_new_and_colours_are_summed(published: Path) -> None:
    model, given = resnet(published), read(published)
    assert torch.equal(model.get_parameter("layer1.0.conv1.weight"), given["layer1.0.conv1.weight"])
    torch.testing.assert_close(model.get_parameter("conv1.weight"), given["conv1.weight"].sum(1, keepdim=True))
    assert model.get_parameter("fc.weight").shape == (2, 512)


def test_frozen_norm_uses_the_statistics_of_the_file(published: Path) -> None:
    model, given = resnet(published, norm="frozen"), read(published)
    assert torch.equal(model.get_buffer("bn1.mean"), given["bn1.running_mean"])
    whole = torchvision_resnet18(Layout(3, 5, (32, 32)))
    whole.load_state_dict(given)
    whole.fc = model.fc
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(model(grey), whole.eval()(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_safetensors_and_the_files_content_in_the_fingerprint(published: Path, tmp_path: Path) -> None:
    given = read(published)
    save_file(given, tmp_path / "a.safetensors")
    given["conv1.weight"] += 1
    save_file(given, tmp_path / "b.safetensors")
    a, b = resnet(tmp_path / "a.safetensors"), resnet(tmp_path / "b.safetensors")
    assert model_fingerprint(a) != model_fingerprint(b)


def test_sha256_pins_the_file(published: Path) -> None:
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    resnet(published, weights_sha256=digest)
    with pytest.raises(StudyError, match="use the study's file"):
        resnet(published, weights_sha256="0" * 64)


def test_a_trained_model_of_ours_loads_again(tmp_path: Path) -> None:
    spec = {"name": "small_cnn", "options": {"width": 4}}
    size = {"in_channels": 1, "out_channels": 2, "image_size": (16, 16)}
    trained = build_model(ModelSpec.model_validate(spec), **size, seed=5)
    save_file(dict(trained.state_dict()), tmp_path / "ours.safetensors")
    again = ModelSpec.model_validate({**spec, "weights": str(tmp_path / "ours.safetensors")})
    loaded = build_model(again, **size, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), loaded.parameters(), strict=True))


def test_old_names_of_densenet_files_are_understood(tmp_path: Path) -> None:
    from torchvision.models import densenet121

    state = densenet121(num_classes=2).state_dict()
    old = {k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for k, v in state.items()}
    torch.save(old, tmp_path / "old.pth")
    spec = ModelSpec(name="torchvision_densenet121", weights=str(tmp_path / "old.pth"))
    model = build_model(spec, in_channels=3, out_channels=2, image_size=(32, 32), seed=0)
    name = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(model.get_parameter(name), state[name])


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil"),))


def test_bad_files(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "evil.pth")
    torch.save([1, 2], "list.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, "few.pth")
    Path("text.safetensors").write_text("no")
    Path("text.pth").write_text("no")
    Path("empty.pth").write_bytes(b"")
    Path("weights.h5").write_bytes(b"x")
    statistics = {k: v for k, v in read(published).items() if "running" not in k}
    torch.save(statistics, "plain.pth")
    for file, says in {
        "absent.pth": "cannot be read",
        "evil.pth": "not a plain state dict",
        "list.pt": "not a plain state dict",
        "few.pth": "62 tensors|60 tensors|tensors are missing",
        "text.safetensors": "not a plain state dict",
        "text.pth": "not a plain state dict",
        "empty.pth": "not a plain state dict",
        "weights.h5": "must end in",
    }.items():
        with pytest.raises(StudyError, match=says):
            resnet(Path(file))
    assert not Path("evil").exists()
    with pytest.raises(StudyError, match="running_mean"):
        resnet(Path("plain.pth"), norm="frozen")
