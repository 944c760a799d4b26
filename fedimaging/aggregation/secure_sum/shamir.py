"""Shamir's secret sharing: any t shares of a secret give it back, t - 1 say nothing (Shamir 1979).

A secret of 32 bytes is the value at 0 of a random polynomial of degree t - 1 over the integers modulo the Mersenne prime
2^521 - 1; share number x is its value at x.
"""

import secrets
from collections.abc import Mapping

from fedimaging.errors import PrivacyError, bad_value

PRIME = 2**521 - 1
SECRET_BYTES = 32
SHARE_BYTES = 66


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """`count` shares, numbers 1 to count, of which any `threshold` give the secret (32 bytes) back."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count:
        given = (len(secret), threshold, count)
        raise PrivacyError(bad_value("(bytes, threshold, count)", given, "needs 32 bytes and 1 <= threshold <= count"))
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value_at(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, count + 1)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from `threshold` of these shares, by number. Error: PrivacyError for too few, or for shares that do not
    belong together (most such sets are told by the size of what they give)."""
    if len(shares) < threshold:
        raise PrivacyError(f"{len(shares)} shares of a secret are here, {threshold} are needed; the sum is aborted.")
    points = sorted(shares)[:threshold]
    total = 0
    for x in points:
        weight = 1
        for other in points:
            if other != x:
                weight = weight * other * pow(other - x, -1, PRIME) % PRIME
        total = (total + weight * int.from_bytes(shares[x], "big")) % PRIME
    if total >> (8 * SECRET_BYTES):
        raise PrivacyError("shares of a secret do not belong together: a hospital sent a wrong one; the sum is aborted.")
    return total.to_bytes(SECRET_BYTES, "big")


def _value_at(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value
