"""Simple numbers of a prepared image: what shifts when a scanner, a protocol or the sort of picture changes.

Each is computed from one image alone, after the study's own preprocessing, so that it says what the network sees.
"""

import numpy as np

INPUT_FEATURES = ("mean", "deviation", "p01", "p50", "p99", "sharpness", "entropy")
"""`mean`, `deviation` of all pixels; `p01`, `p50`, `p99` their percentiles; `sharpness`: mean length of the gradient in value
a pixel (central differences); `entropy`: of the pixels' histogram, in bits, over 64 bins of the study's range of values."""

_BINS = 64
_RANGES = {"unit": (0.0, 1.0), "percentile": (0.0, 1.0), "zscore": (-5.0, 10.0)}
_MOST_ENTROPY = float(np.log2(_BINS))


def input_features(images: np.ndarray, intensity: str) -> np.ndarray:
    """(N, C, *spatial) prepared images -> (N, 7) float64, in the order of INPUT_FEATURES. `intensity`: the study's
    `data.intensity`. Channels are taken together."""
    x = np.asarray(images, np.float64)
    flat = x.reshape(len(x), -1)
    columns = [flat.mean(1), flat.std(1), *np.percentile(flat, (1, 50, 99), axis=1), _sharpness(x), _entropy(flat, intensity)]
    return np.stack(columns, axis=1)


def feature_range(name: str, intensity: str) -> tuple[float, float]:
    """Public limits between which a feature usually lies, for the edges of histograms; none of it is taken from data."""
    low, high = _RANGES[intensity]
    if name in ("deviation", "sharpness"):
        return 0.0, (high - low) / 2
    return (0.0, _MOST_ENTROPY) if name == "entropy" else (low, high)


def _sharpness(x: np.ndarray) -> np.ndarray:
    """Mean over pixels and channels of the length of the spatial gradient."""
    axes = tuple(range(2, x.ndim))
    squares = sum(np.square(part) for part in np.gradient(x, axis=axes))
    return np.asarray(np.sqrt(squares).reshape(len(x), -1).mean(1))


def _entropy(flat: np.ndarray, intensity: str) -> np.ndarray:
    low, high = _RANGES[intensity]
    places = np.clip(((flat - low) / (high - low) * _BINS).astype(np.int64), 0, _BINS - 1)
    counts = np.bincount((places + _BINS * np.arange(len(flat))[:, None]).ravel(), minlength=_BINS * len(flat))
    share = counts.reshape(len(flat), _BINS) / flat.shape[1]
    return -np.sum(share * np.log2(share, where=share > 0, out=np.zeros_like(share)), axis=1)
