"""The recipe's training once more, with NumPy and any noise: one layer on fixed features, full batches, several seeds at once."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from fedimaging.runs import hospitals
from fedimaging.site.simulated import workbench_of
from fedimaging.study.load import load


@dataclass(frozen=True)
class Replay:
    """Features with a one behind them (N, F + 1) and labels (N,) of training and test patients, and the number of hospitals.

    Of the two outputs only the difference counts: it is one vector of weights (F + 1,), whose gradient and noise follow from
    those of the two. Every hospital clips each patient at norm 1 and adds the noise of its own guarantee.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    n_hospitals: int
    rounds: int
    momentum: float
    mean_of: int

    @classmethod
    def of(cls, path: Path, rounds: int, momentum: float, mean_of: int) -> "Replay":
        """The patients of a study with one record each and a network whose last layer alone is trained."""
        study = load(path)
        dataset = hospitals.load_data(study)
        with tempfile.TemporaryDirectory() as folder:
            held = hospitals.make_federation(study, dataset, Path(folder), "cpu")
        features = workbench_of(study, "cpu").features_of(dataset)
        assert features is not None
        assert dataset.labels is not None
        x, y = np.c_[features, np.ones(len(features))].astype(np.float32), dataset.labels.ravel().astype(np.float32)
        train, test = held.train_site >= 0, held.test_site >= 0
        return cls(x[train], y[train], x[test], y[test], len(held.train_names), rounds, momentum, mean_of)

    def auroc(self, noise: np.ndarray, learning_rate: float, seeds: int) -> np.ndarray:
        """(seeds,): of the final models. `noise` (T, m): each round's weights on m independent normal vectors, in clip norms."""
        n = len(self.y_train)
        size = np.sqrt(2) * np.linalg.norm(self.x_train, axis=1)[:, None]
        drawn = np.random.default_rng(0).standard_normal((noise.shape[1], seeds, self.x_train.shape[1]), dtype=np.float32)
        added = np.tensordot(noise.astype(np.float32), drawn, 1) * np.float32(np.sqrt(2 * self.n_hospitals) / n)
        weights = np.zeros(drawn.shape[1:], np.float32)
        speed, final = np.zeros_like(weights), np.zeros_like(weights)
        for round in range(self.rounds):
            wrong = 1 / (1 + np.exp(-self.x_train @ weights.T)) - self.y_train[:, None]  # (N, seeds)
            clipped = wrong / np.maximum(1, np.abs(wrong) * size)
            speed = self.momentum * speed - learning_rate * (2 * clipped.T @ self.x_train / n + added[round])
            weights = weights + speed
            if round >= self.rounds - self.mean_of:
                final += weights / self.mean_of
        return self._auroc(final @ self.x_test.T)

    def _auroc(self, scores: np.ndarray) -> np.ndarray:
        """scores (seeds, N)."""
        positive = self.y_test == 1
        ones, zeros = positive.sum(), (~positive).sum()
        return (rankdata(scores, axis=1)[:, positive].sum(1) - ones * (ones + 1) / 2) / (ones * zeros)
