"""Would noise that is correlated over the rounds (DP-FTRL, banded matrices) beat independent noise in the recipe?

    python experiments/levers/correlated_noise.py

The recipe: full batches, so that every patient takes part in all 100 rounds; server momentum 0.9; the mean of the last 30
models. Writes results/correlated_noise.md: the noise in the models at equal privacy, by matrices alone; the same for small
batches; and AUROC on generated patients (proxy.yaml) when the recipe's training is repeated with each noise.

A mechanism is a matrix C (m, T): it releases C G + Z, where row t of G (T, d) is the sum of clipped gradients in round t and Z
is standard normal noise times the sensitivity of C G. Training sees G + C⁺ Z; a model that is a linear map a of the noise in all
rounds carries a C⁺ Z. Sources: Denisov et al. 2022; Choquette-Choo et al. 2023 (several epochs; amplified banded matrices);
Kalinin and Lampert 2024 (banded square root) and its banded inverse.
"""

import argparse
import itertools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from replay import Replay
from scipy.linalg import toeplitz

from fedimaging.privacy.accounting import calibrate

HERE = Path(__file__).parent
ROUNDS, MOMENTUM, MEAN_OF, DELTA = 100, 0.9, 30, 1e-4
EPSILONS = (1.0, 3.0, 8.0)
RATES = (0.3, 0.6, 1.0, 2.0, 3.0)
BATCHES = {1.0: 1, 0.5: 2, 0.2: 5, 0.05: 20}  # share of the patients -> most bands
HEADS = " | ".join(f"ε = {epsilon:g}" for epsilon in EPSILONS)


def models(curvature: float) -> np.ndarray:
    """(T, T): what a unit of noise in the gradient of round t (column) does to the model after round s (row), where the loss
    along its direction has this curvature times learning rate: 0 is noise that training never answers to."""
    moved = np.zeros((ROUNDS, ROUNDS))
    for t in range(ROUNDS):
        place = speed = 0.0
        for s in range(t, ROUNDS):
            speed = MOMENTUM * speed + curvature * place + (s == t)
            place -= speed
            moved[s, t] = -place
    return moved


def workloads() -> dict[str, np.ndarray]:
    """What is to be exact: rows of weights on the rounds' noise."""
    return {
        "the final model": models(0.0)[-MEAN_OF:].mean(0, keepdims=True),
        "all models": models(0.0),
        "the final model, curvature 0.003": models(0.003)[-MEAN_OF:].mean(0, keepdims=True),
        "the final model, curvature 0.03": models(0.03)[-MEAN_OF:].mean(0, keepdims=True),
    }


def sensitivity(C: np.ndarray) -> float:
    """How far C G moves (Frobenius norm) with one patient, who may move every round's sum by a vector of norm 1.

    The move is C D with unit rows in D: its square is the sum over i, j of (CᵀC)_ij <d_i, d_j>, so at most the sum of
    |(CᵀC)_ij|. Equal rows reach that where CᵀC has no negative entry (it is |C 1| then), signed ones for some others.
    """
    return float(np.sqrt(np.abs(C.T @ C).sum()))


def error(A: np.ndarray, C: np.ndarray, reach: Callable[[np.ndarray], float] = sensitivity) -> float:
    """Root of the expected squared error of A's rows, per coordinate of the gradient, at one unit of privacy."""
    return float(np.linalg.norm(A @ np.linalg.pinv(C)) * reach(C))


def least_error(A: np.ndarray) -> float:
    """No mechanism has a smaller error than the sum of A's column norms n_t, and independent noise with variance in
    proportion to 1 / n_t has this one.

    Proof. Let M = AᵀA, X = CᵀC, N = diag(n), and S = N⁻¹ M N⁻¹: positive semidefinite with ones on its diagonal, so the Gram
    matrix of unit vectors d_t that some patient may contribute (in at least T dimensions; the recipe has 258). Hence
    sensitivity² >= tr(S X). By Cauchy-Schwarz (for the trace norm) tr(M X⁻¹) tr(S X) >= (tr (S½ M S½)½)², and S½ M S½ =
    (S½ N S½)², whose root has the trace tr(N S) = Σ n_t. With X = N: tr(M N⁻¹) = Σ n_t and sensitivity² = Σ n_t.
    """
    return float(np.linalg.norm(A, axis=0).sum())


def schedule(A: np.ndarray) -> np.ndarray:
    """The mechanism that reaches `least_error`: independent noise, whose deviation differs from round to round."""
    return np.diag(np.sqrt(np.linalg.norm(A, axis=0)))


def mechanisms() -> dict[str, np.ndarray]:
    """The usual ones, for T rounds."""
    root = np.ones(ROUNDS)
    inverse = np.ones(ROUNDS)
    for k in range(1, ROUNDS):
        root[k], inverse[k] = root[k - 1] * (k - 0.5) / k, inverse[k - 1] * (k - 1.5) / k

    def lower(column: np.ndarray, bands: int) -> np.ndarray:
        return np.tril(toeplitz(np.where(np.arange(ROUNDS) < bands, column, 0.0)))

    return {
        "independent": np.eye(ROUNDS),
        "binary tree": tree(ROUNDS),
        "square root (full)": lower(root, ROUNDS),
        "square root, 10 bands": lower(root, 10),
        "square root, 4 bands": lower(root, 4),
        "inverse square root, 10 bands": np.linalg.inv(lower(inverse, 10)),
        "inverse square root, 4 bands": np.linalg.inv(lower(inverse, 4)),
    }


def tree(rounds: int) -> np.ndarray:
    """(m, T): sums over every node of the binary tree; decoded by least squares."""
    rows, width = [], 1
    while width <= rounds:
        rows += [(np.arange(rounds) // width == node).astype(float) for node in range(-(-rounds // width))]
        width *= 2
    return np.array(rows)


def searched(A: np.ndarray, start: np.ndarray, reach: Callable[[torch.Tensor], torch.Tensor], steps: int = 1500) -> np.ndarray:
    """A lower-triangular C with the zeros of `start`, by gradient descent on the squared error."""
    mask, target = torch.tensor(start != 0), torch.tensor(A)
    free = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.01)
    for _ in range(steps):
        C = torch.where(mask, free, 0.0)
        loss = torch.log(torch.linalg.solve_triangular(C, target, upper=False, left=False).square().sum() * reach(C))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.where(start != 0, free.detach().numpy(), 0.0)


def check_sensitivity(rounds: int = 10) -> str:
    """All patterns of signs, and random unit vectors, against the formula."""
    rng = np.random.default_rng(0)
    C = np.tril(rng.random((rounds, rounds)))
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=rounds))).T
    found = np.linalg.norm(C @ signs, axis=0).max()
    vectors = rng.standard_normal((20_000, rounds, 5))
    drawn = np.linalg.norm(C @ (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)), axis=(1, 2)).max()
    return (
        f"Sensitivity of a random C without negative entries, {rounds} rounds: formula {sensitivity(C):.6f}, all {2**rounds} "
        f"patterns of signs {found:.6f}, the most of 20,000 draws of unit vectors {drawn:.3f}."
    )


def check_least_error(A: np.ndarray) -> str:
    """A search over full lower-triangular C, which may use any correlation, against the bound."""
    rng = np.random.default_rng(1)
    start = np.tril(np.eye(ROUNDS) + 0.05 * rng.standard_normal((ROUNDS, ROUNDS)))
    C = searched(A, start, lambda C: (C.T @ C).abs().sum())
    return (
        f"Search over all lower-triangular C for all models: a random start has {error(A, start) / least_error(A):.2f} times the "
        f"least error, the end {error(A, C) / least_error(A):.4f} times."
    )


def full_batches() -> list[str]:
    """Error over that of independent noise, every patient in every round."""
    work = workloads()
    lines = [f"| noise | {' | '.join(work)} |", "|---" * (len(work) + 1) + "|"]
    for name, C in mechanisms().items():
        lines.append(f"| {name} | {' | '.join(f'{error(A, C) / error(A, np.eye(ROUNDS)):.3f}' for A in work.values())} |")
    cells = [f"{error(A, schedule(A)) / error(A, np.eye(ROUNDS)):.3f}" for A in work.values()]
    least = [f"{least_error(A) / error(A, np.eye(ROUNDS)):.3f}" for A in work.values()]
    return [*lines, f"| independent, by its own schedule | {' | '.join(cells)} |", f"| least of all | {' | '.join(least)} |"]


def small_batches() -> list[str]:
    """Error of all models with batches of a share q of the patients and the best banded matrix, over that of full batches.

    p bands: the patients are dealt into p groups, round t draws from group t mod p with probability p q; the noise is that of
    T / p rounds of sampling with p q (Choquette-Choo et al. 2023, amplified banded matrices). p = 1 is Poisson sampling.
    """
    A = models(0.0)
    lines = [f"| q | bands | error of the matrix | {HEADS} |", "|---" * (len(EPSILONS) + 3) + "|"]
    for q, bands in ((q, bands) for q, most in BATCHES.items() for bands in (1, 2, 5, 10, 20) if bands <= most):
        factor = 1.0
        if bands > 1:
            start = np.tril(np.triu(np.full((ROUNDS, ROUNDS), 0.3), -(bands - 1)), -1) + np.eye(ROUNDS)
            C = searched(A, np.tril(start), lambda C: C.square().sum(0).max())
            factor = error(A, C, lambda C: float(np.linalg.norm(C, axis=0).max())) / float(np.linalg.norm(A))
        cells = []
        for epsilon in EPSILONS:
            noise = calibrate(epsilon, DELTA, min(1.0, bands * q), -(-ROUNDS // bands)) / q
            cells.append(f"{factor * noise / calibrate(epsilon, DELTA, 1.0, ROUNDS):.2f}")
        lines.append(f"| {q:g} | {bands} | {factor:.2f} | {' | '.join(cells)} |")
    return lines


def trained(seeds: int) -> list[str]:
    """AUROC on generated patients of the recipe's training with each noise, at its own best learning rate."""
    replay, chosen = Replay.of(HERE / "proxy.yaml", ROUNDS, MOMENTUM, MEAN_OF), mechanisms()
    chosen["independent, scheduled for the final model"] = schedule(workloads()["the final model"])
    chosen["independent, scheduled for curvature 0.03"] = schedule(workloads()["the final model, curvature 0.03"])
    lines = [f"| noise | {HEADS} |", "|---" * (len(EPSILONS) + 1) + "|"]
    for name, C in chosen.items():
        spread, cells = np.linalg.pinv(C) * sensitivity(C) / np.sqrt(ROUNDS), []
        for epsilon in EPSILONS:
            sigma = calibrate(epsilon, DELTA, 1.0, ROUNDS)
            runs = [(replay.auroc(sigma * spread, rate, seeds), rate) for rate in RATES]
            best, rate = max(runs, key=lambda one: one[0].mean())
            cells.append(f"{best.mean():.4f} ± {best.std() / np.sqrt(seeds):.4f} ({rate:g})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=30)
    given = parser.parse_args()
    began = time.monotonic()
    seeds = given.seeds
    tables = {
        "Full batches, 100 rounds: error at equal ε over that of independent noise.": [
            *full_batches(), "", check_sensitivity(), "", check_least_error(models(0.0))],
        f"Small batches: error of all models at equal ε (δ = {DELTA:g}) over that of full batches with independent noise.":
            small_batches(),
        f"Generated patients, AUROC: mean ± standard error of {seeds} trainings (best learning rate).": trained(seeds),
    }  # fmt: skip
    lines = [line for words, table in tables.items() for line in (words, "", *table, "")]
    seconds = f"{time.monotonic() - began:.0f} s"
    lines.append(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, {seconds}.")
    (HERE / "results" / "correlated_noise.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
