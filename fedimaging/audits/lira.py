"""Offline LiRA: is the model surer of a patient than models that never saw that patient? (Carlini et al. 2022)

Reference models are trained on random halves of the patients; for each patient, those that were trained without say how
sure a model is of somebody it does not know. What counts is how far the attacked model lies above that.
"""

import numpy as np

from fedimaging.errors import PrivacyError, bad_value

_LEAST_LOSS = 1e-7


def confidences(losses: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) with p = exp(-loss), any shape: near normal over models, where the loss itself is not. For a loss that
    is no cross-entropy it is just another falling function of it."""
    return np.asarray(-np.log(np.expm1(np.clip(losses.astype(np.float64), _LEAST_LOSS, 500.0))))


def offline_scores(target: np.ndarray, references: np.ndarray, without: np.ndarray) -> np.ndarray:
    """(U,) deviations by which the attacked model's confidence lies above that of models trained without the unit.

    target (U,): confidence of the attacked model; references (S, U): of each reference model; without (S, U) bool: the
    model was trained without the unit. The deviation is pooled over units, because a few models give no variance each.
    Error: PrivacyError where a unit is in every reference model.
    """
    count = without.sum(0)
    if not (count > 0).all():
        rule = "are in every reference model, so nothing is known about models without them"
        raise PrivacyError(bad_value("units", int((count == 0).sum()), rule, "train more shadows"))
    mean = np.where(without, references, 0.0).sum(0) / count
    spread = float((np.where(without, references - mean, 0.0) ** 2).sum() / max(1, int((count - 1).sum())))
    return np.asarray((target - mean) / (np.sqrt(spread) if spread > 0 else 1.0))
