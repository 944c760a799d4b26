"""Analytic inversion: a patient's image out of one update of a network that starts with a dense layer.

For y = W x + b and one image x, the gradients are dL/dW = d x^T and dL/db = d for some vector d, so each row of the first
over its entry of the second is the image itself, whatever the loss. An optimiser's step only scales both, and so does a
clip: neither is a defence. Noise is. Source: Phong et al. 2018; SSIM of Wang et al. 2004.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from fedimaging.errors import PrivacyError, bad_value

_SIGMA = 1.5  # of the window of SSIM, in pixels
_K1, _K2 = 0.01, 0.03  # of Wang et al., for images in [0, 1]


@dataclass(frozen=True)
class Inversion:
    """What came out, clipped to [0, 1], and how near it is to the image: `ssim` (1 is equal), `psnr` in dB."""

    image: np.ndarray
    ssim: float
    psnr: float


def invert_dense_layer(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The input (D,) of a dense layer from the change of its weight (H, D) and bias (H,), as gradient or update.

    The least-squares fit over all rows: exact for one image without noise, and the best linear guess with it. Several
    images give a mean of them, with weights that add up to one. Error: PrivacyError where the bias did not move.
    """
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise PrivacyError(bad_value("shapes", (weight.shape, bias.shape), "must be (H, D) and (H,)"))
    moved = float(bias @ bias)
    if not (moved > 0 and math.isfinite(moved)):
        raise PrivacyError(bad_value("norm of the bias's change", math.sqrt(moved), "must be above 0 and finite"))
    return np.asarray(bias @ weight / moved)


def audit_inversion(image: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Inversion:
    """Invert an update and compare with the image (any shape, in [0, 1]) that the layer saw, flattened, as its input."""
    found = np.clip(invert_dense_layer(weight, bias).reshape(image.shape), 0.0, 1.0)
    error = float(np.mean((found - image) ** 2))
    return Inversion(found, ssim(found, image), math.inf if error == 0 else -10 * math.log10(error))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two images of one shape in [0, 1], any number of dimensions, with a Gaussian window."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)

    def blurred(image: np.ndarray) -> np.ndarray:
        return np.asarray(gaussian_filter(image, _SIGMA, truncate=3.5))

    mean_one, mean_other = blurred(one), blurred(other)
    variance_one = blurred(one * one) - mean_one**2
    variance_other = blurred(other * other) - mean_other**2
    covariance = blurred(one * other) - mean_one * mean_other
    light = (2 * mean_one * mean_other + _K1**2) / (mean_one**2 + mean_other**2 + _K1**2)
    structure = (2 * covariance + _K2**2) / (variance_one + variance_other + _K2**2)
    return float((light * structure).mean())
