"""What a hospital releases so that a model's probabilities can be tempered: sums over patients on a public grid of
temperatures. No score of any scan leaves.

A temperature T divides a model's logits z. For each T of the grid a hospital sums the derivative of the negative log
likelihood with respect to 1/T over its validation patients: what the tempered model expects its logits to be, less the logit
of the true class. Over 1/T this sum only rises, and where it crosses zero the model is as sure as it is right; sums of
hospitals add up.

A patient's part is the mean over their scans, and a scan weighs min(1, 1 / range of its logits), so that every sum moves by
at most 1 with a patient and all of them together by at most `SENSITIVITY`. The weight hangs on the scan's logits and not on
its label: where the model is off by a temperature alone, the weighted sum still crosses zero at that temperature (Künsch,
Stefanski and Carroll 1989 on conditionally unbiased bounded-influence estimators). Releases with Gaussian noise are charged as
one mechanism without sampling (`released_metrics.release_charge`).

Source of temperature scaling: Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks".
"""

import math

import numpy as np

from fedimaging.privacy.released_metrics import PatientTotals

TEMPERATURES = tuple(2.0**power for power in range(-4, 5))
"""The public grid, from 1/16 to 16."""
SENSITIVITY = math.sqrt(len(TEMPERATURES))
"""The most that one patient, added or removed, moves the sums in Euclidean norm."""
_LEAST_SCORE = 1e-30  # below it a softmax in float32 tells nothing any more
_LEAST_SIGMOID = 1e-7  # 1 less the greatest sigmoid in float32 that is below 1


def logits_of(scores: np.ndarray, kind: str) -> np.ndarray:
    """Logits (S, K) whose softmax are the scores (S, K) of `binary` and `multiclass`; for `multilabel` (S, L) log-odds of each
    label. A scan whose scores are not finite gets equal logits: a model that says nothing."""
    scores = np.asarray(scores, np.float64)
    if kind == "multilabel":
        bounded = np.clip(np.nan_to_num(scores, nan=0.5), _LEAST_SIGMOID, 1 - _LEAST_SIGMOID)
        return np.asarray(np.log(bounded) - np.log1p(-bounded))
    logits = np.log(np.clip(scores, _LEAST_SCORE, 1.0))
    return np.where(np.isfinite(scores).all(1, keepdims=True), logits, 0.0)


def tempering_totals(scores: np.ndarray, labels: np.ndarray, patient: np.ndarray, kind: str) -> PatientTotals:
    """`tempering` (T,): for each of `TEMPERATURES` the sum over patients.

    scores (S, K) probabilities; labels (S,) class numbers or (S, L) zeros and ones for `multilabel`, whose labels count as so
    many answers of a scan; patient (S,). Nobody gives zeros.
    """
    logits, truth, patient = _answers(logits_of(scores, kind), labels, patient, kind)
    _, member, counts = np.unique(patient, return_inverse=True, return_counts=True)
    spread = np.ptp(logits, axis=1)
    weights = np.minimum(1.0, 1.0 / np.maximum(spread, 1e-12)) / counts[member]
    true_logit = logits[np.arange(len(logits)), truth]
    sums = [float(weights @ (_expected(logits / temperature, logits) - true_logit)) for temperature in TEMPERATURES]
    return PatientTotals({"tempering": np.array(sums)}, SENSITIVITY)


def _answers(
    logits: np.ndarray, labels: np.ndarray, patient: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits (A, K), index of the true class (A,), patient (A,)); of `multilabel`, one answer of two classes a label."""
    if kind != "multilabel":
        return logits, labels.astype(np.int64), patient
    flat = logits.reshape(-1)
    two = np.stack([np.zeros_like(flat), flat], axis=1)
    return two, (labels.reshape(-1) > 0.5).astype(np.int64), np.repeat(patient, logits.shape[1])


def _expected(tempered: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Mean logit (A,) under the softmax of the tempered ones."""
    powers = np.exp(tempered - tempered.max(1, keepdims=True))
    return np.asarray((powers * logits).sum(1) / powers.sum(1))
