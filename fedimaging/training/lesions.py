"""Lesions scan by scan: which of them were found, and what was found where none is.

A lesion is a connected part of the mask of one class; pixels that touch at a corner are connected. It is found where the
prediction of its class covers at least one of its pixels; a predicted part that covers no pixel of the class is a false one.
"""

import numpy as np

from fedimaging.results import Arrays

LESION_ARRAYS = ("lesions", "lesions_found", "false_lesions", "size_true", "size_predicted")


def scan_lesions(predicted: np.ndarray, truth: np.ndarray, classes: int) -> Arrays:
    """LESION_ARRAYS, each (B, K-1) float64, for label maps (B, *spatial): numbers of lesions, of those found, of false ones;
    and the pixels (voxels) of the class in truth and prediction."""
    shape = (len(truth), classes - 1)
    arrays = {name: np.zeros(shape) for name in LESION_ARRAYS}
    for b in range(shape[0]):
        for k in range(1, classes):
            there, found = truth[b] == k, predicted[b] == k
            n_true, n_found = _touched(there, found)
            n_parts, n_right = _touched(found, there)
            arrays["lesions"][b, k - 1], arrays["lesions_found"][b, k - 1] = n_true, n_found
            arrays["false_lesions"][b, k - 1] = n_parts - n_right
            arrays["size_true"][b, k - 1], arrays["size_predicted"][b, k - 1] = there.sum(), found.sum()
    return arrays


def _touched(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """How many connected parts the mask has, and how many of them share a pixel with the other mask."""
    from scipy import ndimage  # here, because SciPy takes a third of a second

    parts, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    return int(count), int((np.bincount(parts[other], minlength=count + 1)[1:] > 0).sum())
