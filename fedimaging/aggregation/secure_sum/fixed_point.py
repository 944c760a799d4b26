"""Numbers as integers modulo 2^32, so that masks can be uniform and sums exact."""

import math
from dataclasses import dataclass

import numpy as np

from fedimaging.errors import FedimagingError, bad_value

_MODULUS_BITS = 32


@dataclass(frozen=True)
class FixedPoint:
    """Values in [-limit, limit] on a grid of 2^bits steps.

    Error: rounding to the nearest step loses at most `step` / 2 a value, so a sum of n values is off by at most
    n * step / 2 = n * limit / 2^bits. Sums of up to `most_values` values do not wrap around. limit is a public constant.
    """

    limit: float
    bits: int = 24

    def __post_init__(self) -> None:
        if not (self.limit > 0 and math.isfinite(self.limit)):
            raise FedimagingError(bad_value("limit", self.limit, "must be a finite number above 0"))
        if not 2 <= self.bits <= _MODULUS_BITS - 2:
            raise FedimagingError(bad_value("bits", self.bits, f"must lie between 2 and {_MODULUS_BITS - 2}"))

    @property
    def step(self) -> float:
        """The distance of two neighbours on the grid."""
        return 2 * self.limit / 2**self.bits

    @property
    def most_values(self) -> int:
        """How many values a sum may have: the largest is below half the modulus."""
        return int((2 ** (_MODULUS_BITS - 1) - 1) // 2 ** (self.bits - 1))

    def encode(self, vector: np.ndarray) -> np.ndarray:
        """(P,) floats as uint32, negatives as two's complement. Error: FedimagingError for a value that is not finite or
        lies beyond the limit: cutting it off would change the sum without a word."""
        if not np.isfinite(vector).all():
            raise FedimagingError("the vector holds NaN or infinite numbers; it cannot be summed.")
        largest = float(np.abs(vector).max(initial=0.0))
        if largest > self.limit:
            rule = f"is beyond the limit {self.limit:g}"
            raise FedimagingError(bad_value("the largest value of the vector", largest, rule, "raise the limit"))
        return np.rint(np.asarray(vector, np.float64) / self.step).astype(np.int32).view(np.uint32)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """A sum (P,) uint32 as float64."""
        return total.view(np.int32) * self.step
