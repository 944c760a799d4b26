"""torchvision's networks, for weights that a hospital has as a file. Nothing is ever downloaded."""

from typing import TYPE_CHECKING

from fedimaging.errors import StudyError, bad_value
from fedimaging.models.layout import Layout

if TYPE_CHECKING:
    from torch import nn


def torchvision_resnet18(layout: Layout) -> "nn.Module":
    """torchvision's ResNet18 (He et al. 2016), 2-D."""
    from torchvision.models import resnet18

    _require_2d(layout)
    model = resnet18(num_classes=layout.out_channels)
    model.conv1 = _first_conv(model.conv1, layout.in_channels)
    return model


def torchvision_resnet50(layout: Layout) -> "nn.Module":
    """torchvision's ResNet50 (He et al. 2016), 2-D."""
    from torchvision.models import resnet50

    _require_2d(layout)
    model = resnet50(num_classes=layout.out_channels)
    model.conv1 = _first_conv(model.conv1, layout.in_channels)
    return model


def torchvision_densenet121(layout: Layout) -> "nn.Module":
    """torchvision's DenseNet121 (Huang et al. 2017), 2-D."""
    from torchvision.models import densenet121

    _require_2d(layout)
    model = densenet121(num_classes=layout.out_channels)
    model.features.conv0 = _first_conv(model.features.conv0, layout.in_channels)
    return model


def _require_2d(layout: Layout) -> None:
    if layout.dims != 2:
        rule = "has 3 sides, but torchvision's networks are 2-D"
        raise StudyError(bad_value("image_size", list(layout.image_size), rule, "use a MONAI network such as resnet18"))


def _first_conv(conv: "nn.Conv2d", in_channels: int) -> "nn.Conv2d":
    from torch import nn

    if in_channels == conv.in_channels:
        return conv
    return nn.Conv2d(in_channels, conv.out_channels, 7, stride=2, padding=3, bias=False)
