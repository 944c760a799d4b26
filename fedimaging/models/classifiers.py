"""Networks that give K numbers a scan. Each builder: (layout, *, options) -> network, as its authors define it.

BatchNorm is asked for wherever the library lets one choose, because `dp_safe` replaces exactly that by the norm the
study names: one place decides. Dropout is left out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from fedimaging.errors import StudyError, bad_value
from fedimaging.models.layout import Layout

if TYPE_CHECKING:
    from torch import nn

Positive = Annotated[int, Ge(1)]
NotNegative = Annotated[int, Ge(0)]
Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]


def small_cnn(
    layout: Layout, *, width: Positive = 16, depth: Positive = 3, grid: Positive = 1, activation: Activation = "tanh"
) -> "nn.Module":
    """A few thousand parameters; for 28 to 64 pixels. See `small.SmallCNN`."""
    from fedimaging.models.small import SmallCNN

    return SmallCNN(
        layout.dims,
        layout.in_channels,
        layout.out_channels,
        width=width,
        depth=depth,
        grid=grid,
        activation=activation,
    )


def wavelet_net(
    layout: Layout, *, scales: Positive = 3, angles: Positive = 8, grid: Positive = 4, components: NotNegative = 0
) -> "nn.Module":
    """Fixed wavelet features and one trained layer: 802 parameters for two classes; 2-D. With `components`, which a weights
    file of `fedimaging pretrain` must bring, the layer sees so many of their whitened components: 2 * (components + 1)
    parameters. See `wavelets.WaveletNet`."""
    from fedimaging.models.wavelets import WaveletNet

    if layout.dims != 2:
        rule = "has 3 sides, but wavelet_net is 2-D"
        raise StudyError(bad_value("image_size", list(layout.image_size), rule, "use small_cnn"))
    return WaveletNet(layout.in_channels, layout.out_channels, layout.image_size, scales, angles, grid, components)


def densenet(
    layout: Layout,
    *,
    init_features: Positive = 16,
    growth_rate: Positive = 8,
    block_config: Sequence[Positive] = (2, 2, 2),
    bn_size: Positive = 4,
) -> "nn.Module":
    """MONAI's DenseNet (Huang et al. 2017) at any size; the default has about 20 thousand parameters."""
    from monai.networks.nets import DenseNet

    return DenseNet(
        layout.dims,
        layout.in_channels,
        layout.out_channels,
        init_features=init_features,
        growth_rate=growth_rate,
        block_config=tuple(block_config),
        bn_size=bn_size,
    )


def densenet121(layout: Layout) -> "nn.Module":
    """MONAI's DenseNet121 (Huang et al. 2017), 7 million parameters; needs at least 32 pixels a side."""
    from monai.networks.nets import DenseNet121

    return DenseNet121(layout.dims, layout.in_channels, layout.out_channels)


def resnet18(layout: Layout, *, widen_factor: float = 1.0, stem_stride: Positive = 2) -> "nn.Module":
    """MONAI's ResNet18 (He et al. 2016), 11 million parameters at widen_factor 1."""
    return _resnet(layout, "basic", [2, 2, 2, 2], widen_factor, stem_stride)


def resnet50(layout: Layout, *, widen_factor: float = 1.0, stem_stride: Positive = 2) -> "nn.Module":
    """MONAI's ResNet50 (He et al. 2016), 24 million parameters at widen_factor 1."""
    return _resnet(layout, "bottleneck", [3, 4, 6, 3], widen_factor, stem_stride)


def _resnet(layout: Layout, block: str, layers: list[int], widen_factor: float, stem_stride: int) -> "nn.Module":
    from monai.networks.nets import ResNet

    return ResNet(
        block,
        layers,
        [64, 128, 256, 512],
        spatial_dims=layout.dims,
        n_input_channels=layout.in_channels,
        num_classes=layout.out_channels,
        conv1_t_stride=stem_stride,
        widen_factor=widen_factor,
        bias_downsample=False,
    )


def efficientnet_b0(layout: Layout) -> "nn.Module":
    """MONAI's EfficientNet-B0 (Tan and Le 2019), 4 million parameters."""
    from monai.networks.nets import EfficientNetBN
    from monai.networks.nets.efficientnet import MBConvBlock

    model = EfficientNetBN(
        "efficientnet-b0",
        pretrained=False,
        spatial_dims=layout.dims,
        in_channels=layout.in_channels,
        num_classes=layout.out_channels,
    )
    for block in model.modules():
        if isinstance(block, MBConvBlock):
            block.drop_connect_rate = 0.0
    return model


def vit(
    layout: Layout,
    *,
    patch_size: Positive = 8,
    hidden_size: Positive = 192,
    mlp_dim: Positive = 768,
    num_layers: Positive = 6,
    num_heads: Positive = 3,
) -> "nn.Module":
    """MONAI's vision transformer (Dosovitskiy et al. 2021); every side must be a multiple of patch_size."""
    from fedimaging.models.vit import ViTClassifier

    layout.require_divisible(patch_size, f"vit with patch_size={patch_size}")
    if hidden_size % num_heads:
        rule = f"must be a multiple of num_heads={num_heads}"
        raise StudyError(bad_value("model.options.hidden_size", hidden_size, rule))
    return ViTClassifier(
        in_channels=layout.in_channels,
        img_size=layout.image_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        classification=True,
        num_classes=layout.out_channels,
        spatial_dims=layout.dims,
        post_activation="none",
    )
