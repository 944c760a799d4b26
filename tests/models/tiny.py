"""Every network of the zoo at its smallest, so that each promise can be checked on each of them."""

from functools import cache

import torch
from torch import Tensor, nn

from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import CLASSIFIERS, build_model

TINY: dict[str, dict] = {
    "small_cnn": {"width": 4},
    "wavelet_net": {"scales": 2, "angles": 4},
    "densenet": {"init_features": 8, "growth_rate": 4, "block_config": [1, 2]},
    "densenet121": {},
    "resnet18": {"widen_factor": 0.125},
    "resnet50": {"widen_factor": 0.125},
    "efficientnet_b0": {},
    "vit": {"patch_size": 8, "hidden_size": 12, "mlp_dim": 16, "num_layers": 2, "num_heads": 2},
    "torchvision_resnet18": {},
    "torchvision_resnet50": {},
    "torchvision_densenet121": {},
    "unet": {"channels": [4, 8, 12], "num_res_units": 1},
    "basic_unet": {"features": [4, 4, 8, 8, 12, 4]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1]},
    "dynunet": {"filters": [4, 8, 12], "strides": [1, 2, 2]},
    "swin_unetr": {"depths": [1, 1, 1, 1]},
}
SIDES = {"efficientnet_b0": 32, "densenet121": 32, "torchvision_densenet121": 32, "swin_unetr": 32}
ONLY_2D = {"wavelet_net", "torchvision_resnet18", "torchvision_resnet50", "torchvision_densenet121"}
# In 3-D these take seconds each and share their blocks with a smaller one that is here.
LARGE_3D = {"densenet121", "resnet50", "efficientnet_b0", "swin_unetr"}
CASES = [(name, 2) for name in TINY] + [(name, 3) for name in TINY if name not in ONLY_2D | LARGE_3D]
CLASSES = 3


def image_size(name: str, dims: int) -> tuple[int, ...]:
    return (SIDES.get(name, 16),) * dims


def build(name: str, dims: int, *, seed: int = 0, **spec: object) -> nn.Module:
    model = ModelSpec.model_validate({"name": name, "options": TINY[name], **spec})
    return build_model(model, in_channels=1, out_channels=CLASSES, image_size=image_size(name, dims), seed=seed)


@cache
def shared(name: str, dims: int) -> nn.Module:
    """Built once for all tests that leave the network as it was."""
    return build(name, dims)


def scans(name: str, dims: int, count: int, seed: int) -> Tensor:
    return torch.randn((count, 1, *image_size(name, dims)), generator=torch.Generator().manual_seed(seed))


def labels(name: str, dims: int, count: int) -> Tensor:
    shape = (count,) if name in CLASSIFIERS else (count, *image_size(name, dims))
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(7))
