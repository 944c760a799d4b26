"""Weight standardisation: each convolution works with its weights shifted to mean zero and scaled to one norm.

After Qiao, Wang, Liu, Shen and Yuille 2019 ("Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization"), scaled by the fan-in as in Brock, De and Smith 2021; De et al. 2022 found that it helps training with noise. It
looks at weights only, never at the batch, so a patient's gradient stays that patient's.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedimaging.errors import StudyError

_LEAST_VARIANCE = 1e-4  # times the fan-in; a filter of equal numbers gives a map of zeros, not of NaN


def standardised(weight: Tensor) -> Tensor:
    """(O, I, *kernel) -> the same shape; every output channel has mean 0 and, but for `_LEAST_VARIANCE`, norm 1."""
    flat = weight.flatten(1)
    variance, mean = torch.var_mean(flat, dim=1, unbiased=False, keepdim=True)
    scale = (variance * flat.shape[1] + _LEAST_VARIANCE).rsqrt()
    return ((flat - mean) * scale).view_as(weight)


class _Standardised(_ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        """As the convolution's own, with the standardised weight."""
        return self._conv_forward(input, standardised(self.weight), self.bias) 


class StandardisedConv1d(_Standardised, nn.Conv1d):
    """See `standardised`."""


class StandardisedConv2d(_Standardised, nn.Conv2d):
    """See `standardised`."""


class StandardisedConv3d(_Standardised, nn.Conv3d):
    """See `standardised`."""


_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: StandardisedConv1d, nn.Conv2d: StandardisedConv2d, nn.Conv3d: StandardisedConv3d,
}


def standardise_weights(model: nn.Module) -> nn.Module:
    """Let every plain convolution of `model` standardise its weight, in place; names and numbers of the parameters stay.

    Error: StudyError for a network without one.
    """
    found = [layer for layer in model.modules() if type(layer) in _OF]
    if not found:
        raise StudyError(
            f"model.weight_standardisation=true, but {type(model).__name__} has no convolution to standardise; leave it out."
        )
    for layer in found:
        layer.__class__ = _OF[type(layer)]
    return model
