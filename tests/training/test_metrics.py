import numpy as np
import pytest
from sklearn import metrics as sk

from fedimaging.training.metrics import CLASSIFICATION_METRICS, classification_metrics, quick_auroc

N = 120
RNG = np.random.default_rng(3)
PATIENTS = np.array([f"p{i // 2}" for i in range(N)])


def softmax(x: np.ndarray) -> np.ndarray:
    exponent = np.exp(x - x.max(1, keepdims=True))
    return exponent / exponent.sum(1, keepdims=True)


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    classes = 2 if kind == "binary" else 3
    if kind == "multilabel":
        labels = RNG.integers(0, 2, (N, classes)).astype(np.float32)
        return 1 / (1 + np.exp(-(labels - 0.5 + RNG.standard_normal((N, classes))))), labels
    labels = RNG.integers(0, classes, N)
    return softmax(RNG.standard_normal((N, classes)) + np.eye(classes)[labels]), labels


def values(kind: str, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {k: v.value for k, v in classification_metrics(scores, labels, PATIENTS, kind=kind, resamples=20).items()}


def test_binary_points_are_scikit_learn_s() -> None:
    scores, labels = data("binary")
    found = values("binary", scores, labels)
    false, true, _ = sk.roc_curve(labels, scores[:, 1], drop_intermediate=False)
    wanted = {
        "auroc": sk.roc_auc_score(labels, scores[:, 1]),
        "average_precision": sk.average_precision_score(labels, scores[:, 1]),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, scores.argmax(1)),
        "sensitivity_at_90_specificity": true[false <= 0.1 + 1e-12].max(),
        "brier": sk.brier_score_loss(labels, scores[:, 1]),
    }
    assert tuple(found) == CLASSIFICATION_METRICS
    assert found == pytest.approx(wanted, rel=1e-12)


def test_multiclass_points_are_scikit_learn_s_macro() -> None:
    scores, labels = data("multiclass")
    found = values("multiclass", scores, labels)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores, multi_class="ovr"))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(np.eye(3)[labels], scores))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, scores.argmax(1)))
    assert found["brier"] == pytest.approx(((scores - np.eye(3)[labels]) ** 2).sum(1).mean())


def test_multilabel_points_are_means_over_labels() -> None:
    scores, labels = data("multilabel")
    found = values("multilabel", scores, labels)
    recall = [sk.balanced_accuracy_score(labels[:, k], scores[:, k] > 0.5) for k in range(3)]
    brier = [sk.brier_score_loss(labels[:, k], scores[:, k]) for k in range(3)]
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(labels, scores))
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert found["brier"] == pytest.approx(np.mean(brier))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_intervals_hold_the_value_and_count_patients(kind: str) -> None:
    scores, labels = data(kind)
    for found in classification_metrics(scores, labels, PATIENTS, kind=kind, resamples=300).values():
        assert found.low < found.value < found.high
        assert found.n_patients == N // 2


def test_the_interval_is_that_of_a_loop_over_scikit_learn() -> None:
    scores, labels = data("binary")
    found = classification_metrics(scores, labels, PATIENTS, kind="binary", resamples=2000)["auroc"]
    rng, names = np.random.default_rng(9), np.unique(PATIENTS)
    rows = {name: np.flatnonzero(name == PATIENTS) for name in names}
    loop = []
    for _ in range(400):
        drawn = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        loop.append(sk.roc_auc_score(labels[drawn], scores[drawn, 1]))
    np.testing.assert_allclose([found.low, found.high], np.quantile(loop, [0.025, 0.975]), atol=0.02)


def test_one_class_has_no_ranking_but_a_brier_score() -> None:
    scores = np.array([[0.2, 0.8], [0.4, 0.6]])
    found = classification_metrics(scores, np.array([1, 1]), np.array(["a", "b"]), kind="binary", resamples=20)
    assert [k for k, v in found.items() if np.isnan(v.value)] == list(CLASSIFICATION_METRICS[:4])
    assert found["brier"].value == pytest.approx((0.04 + 0.16) / 2)


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    scores, labels = data("multiclass")
    labels = labels % 2
    wanted = np.mean([sk.roc_auc_score(labels == k, scores[:, k]) for k in (0, 1)])
    assert values("multiclass", scores, labels)["auroc"] == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_quick_auroc_is_the_same_number(kind: str) -> None:
    scores, labels = data(kind)
    assert quick_auroc(scores, labels) == pytest.approx(values(kind, scores, labels)["auroc"])


def test_quick_auroc_of_one_class() -> None:
    assert np.isnan(quick_auroc(np.array([[0.2, 0.8]]), np.array([1])))
