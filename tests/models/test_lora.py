"""Low-rank updates: the network starts as it was, little trains, and every engine clips it as autograd would."""

import pytest
import torch

from fedimaging.errors import StudyError
from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import build_model
from fedimaging.privacy.clipping import clipped_sum

VIT = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2, "patch_size": 8}


def _vit(trainable: str, rank: int = 2) -> torch.nn.Module:
    spec = ModelSpec.model_validate({"name": "vit", "trainable": trainable, "lora_rank": rank, "options": VIT})
    return build_model(spec, in_channels=1, out_channels=2, image_size=(16, 16), seed=3)


def test_the_network_starts_as_it_was_and_trains_a_small_part() -> None:
    whole, lora = _vit("all"), _vit("lora")
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole(x), lora(x))
    trained = {name: p.numel() for name, p in lora.named_parameters() if p.requires_grad}
    # two blocks of qkv, out_proj, linear1, linear2 with rank 2, and a head of 24 * 2 + 2
    per_block = 2 * ((24 + 72) + (24 + 24) + (24 + 32) + (32 + 24))
    assert sum(trained.values()) == 2 * per_block + 24 * 2 + 2
    assert all(".down." in name or ".up." in name or "classification_head" in name for name in trained)


def test_equal_seeds_give_equal_updates() -> None:
    assert all(torch.equal(a, b) for a, b in zip(_vit("lora").parameters(), _vit("lora").parameters(), strict=True))


@pytest.mark.parametrize("engine", ["fused", "vmap", "opacus"])
def test_engines_agree_on_it(engine: str) -> None:
    model = _vit("lora")
    for name, parameter in model.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y, units = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 2])

    def losses(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, target, reduction="none")

    sums = [clipped_sum(model, losses, x, y, units, 3, 0.1, engine=name) for name in ("loop", engine)]
    for one, other in zip(sums[0].sum, sums[1].sum, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert sum(float(part.norm()) for part in sums[0].sum) > 0.05


def test_a_network_without_linear_layers_is_refused() -> None:
    with pytest.raises(StudyError, match="lora"):
        build_model(ModelSpec(name="densenet", trainable="lora"), in_channels=1, out_channels=2, image_size=(16, 16), seed=0)
