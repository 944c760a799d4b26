"""Networks that give K numbers a pixel or voxel. Each builder: (layout, *, options) -> network.

As in `classifiers`, BatchNorm stands where the study's norm will stand.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, MinLen

from fedimaging.errors import StudyError, bad_value
from fedimaging.models.layout import Layout

if TYPE_CHECKING:
    from torch import nn

Positive = Annotated[int, Ge(1)]


def unet(
    layout: Layout,
    *,
    channels: Annotated[Sequence[Positive], MinLen(2)] = (16, 32, 64, 128),
    num_res_units: Annotated[int, Ge(0)] = 2,
) -> "nn.Module":
    """MONAI's residual U-Net (Kerfoot et al. 2018), halving once between neighbouring `channels`."""
    from monai.networks.nets import UNet

    halvings = len(channels) - 1
    layout.require_divisible(2**halvings, f"unet with {len(channels)} channels entries")
    return UNet(
        layout.dims,
        layout.in_channels,
        layout.out_channels,
        tuple(channels),
        (2,) * halvings,
        num_res_units=num_res_units,
        norm="batch",
    )


def basic_unet(
    layout: Layout, *, features: Annotated[Sequence[Positive], MinLen(6)] = (32, 32, 64, 128, 256, 32)
) -> "nn.Module":
    """MONAI's BasicUNet (Ronneberger et al. 2015; Falk et al. 2019): five levels and the width before the output."""
    from monai.networks.nets import BasicUNet

    if len(features) != 6:
        rule = "must be 6 numbers: five levels and the last"
        raise StudyError(bad_value("model.options.features", list(features), rule))
    return BasicUNet(layout.dims, layout.in_channels, layout.out_channels, tuple(features), norm="batch")


def segresnet(
    layout: Layout,
    *,
    init_filters: Positive = 8,
    blocks_down: Annotated[Sequence[Positive], MinLen(2)] = (1, 2, 2, 4),
) -> "nn.Module":
    """MONAI's SegResNet (Myronenko 2018) without its variational branch."""
    from monai.networks.nets import SegResNet

    layout.require_divisible(2 ** (len(blocks_down) - 1), f"segresnet with {len(blocks_down)} blocks_down entries")
    return SegResNet(
        layout.dims,
        init_filters,
        layout.in_channels,
        layout.out_channels,
        norm="batch",
        blocks_down=tuple(blocks_down),
        blocks_up=(1,) * (len(blocks_down) - 1),
    )


def dynunet(
    layout: Layout,
    *,
    filters: Annotated[Sequence[Positive], MinLen(3)] = (16, 32, 64, 128),
    strides: Annotated[Sequence[Positive], MinLen(3)] = (1, 2, 2, 2),
) -> "nn.Module":
    """MONAI's DynUNet (Isensee et al. 2021, nnU-Net), 3-wide kernels, without deep supervision."""
    from monai.networks.nets import DynUNet

    if len(filters) != len(strides) or strides[0] != 1:
        rule = f"must start with 1 and be as many as filters ({len(filters)})"
        raise StudyError(bad_value("model.options.strides", list(strides), rule))
    layout.require_divisible(prod(strides), f"dynunet with strides {list(strides)}")
    model = DynUNet(
        layout.dims,
        layout.in_channels,
        layout.out_channels,
        [3] * len(strides),
        list(strides),
        list(strides[1:]),
        filters=list(filters),
        norm_name="batch",
    )
    # MONAI registers every block twice, here and inside skip_layers, which alone computes. One place each, the last
    # layer last: functional_call leaves a module that is registered twice with the wrong tensors.
    output_block = model.output_block
    for name in ("input_block", "downsamples", "bottleneck", "upsamples", "output_block"):
        delattr(model, name)
    model.output_block = output_block
    return model


def swin_unetr(
    layout: Layout,
    *,
    feature_size: Annotated[int, Ge(12)] = 12,
    depths: Annotated[Sequence[Positive], MinLen(4)] = (2, 2, 2, 2),
    num_heads: Annotated[Sequence[Positive], MinLen(4)] = (3, 6, 12, 24),
) -> "nn.Module":
    """MONAI's SwinUNETR (Hatamizadeh et al. 2022); every side a multiple of 32, feature_size a multiple of 12."""
    from monai.networks.nets import SwinUNETR

    layout.require_divisible(32, "swin_unetr")
    if feature_size % 12:
        raise StudyError(bad_value("model.options.feature_size", feature_size, "must be a multiple of 12"))
    return SwinUNETR(
        layout.in_channels,
        layout.out_channels,
        feature_size=feature_size,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        norm_name="batch",
        spatial_dims=layout.dims,
    )
