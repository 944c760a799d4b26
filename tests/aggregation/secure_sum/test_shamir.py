import itertools
import os

import pytest

from fedimaging.aggregation.secure_sum.shamir import PRIME, SHARE_BYTES, combine, split
from fedimaging.errors import PrivacyError


def test_any_three_of_five_shares_give_the_secret_back() -> None:
    secret = os.urandom(32)
    shares = dict(enumerate(split(secret, 3, 5), start=1))
    for chosen in itertools.combinations(shares, 3):
        assert combine({x: shares[x] for x in chosen}, 3) == secret
    assert combine(shares, 3) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_the_largest_secret(secret: bytes) -> None:
    assert combine(dict(enumerate(split(secret, 2, 2), start=1)), 2) == secret


def test_two_of_three_shares_are_not_enough_and_fit_every_secret() -> None:
    shares = dict(enumerate(split(bytes(32), 3, 5), start=1))
    with pytest.raises(PrivacyError, match="2 shares of a secret are here, 3 are needed"):
        combine({x: shares[x] for x in (1, 2)}, 3)
    # Whatever the secret, one line's worth of third shares completes the two: here for a secret of one.
    value = {x: int.from_bytes(share, "big") for x, share in shares.items()}
    third = (3 * (value[2] - value[1]) + 1) % PRIME  # the parabola through (0, 1), (1, f1), (2, f2), at 3
    assert combine({1: shares[1], 2: shares[2], 3: third.to_bytes(SHARE_BYTES, "big")}, 3) == (1).to_bytes(32, "big")


def test_shares_say_nothing_by_themselves() -> None:
    """The first share of one and the same secret is another number each time, and spread over the field."""
    firsts = [int.from_bytes(split(bytes(32), 3, 5)[0], "big") for _ in range(200)]
    assert len(set(firsts)) == 200
    assert 70 < sum(value > PRIME // 2 for value in firsts) < 130


def test_shares_of_different_secrets_are_told() -> None:
    one, other = split(os.urandom(32), 3, 3), split(os.urandom(32), 3, 3)
    with pytest.raises(PrivacyError, match="do not belong together"):
        combine({1: one[0], 2: one[1], 3: other[2]}, 3)


@pytest.mark.parametrize(("size", "threshold", "count"), [(31, 2, 3), (32, 0, 3), (32, 4, 3)])
def test_what_cannot_be_shared_is_refused(size: int, threshold: int, count: int) -> None:
    with pytest.raises(PrivacyError, match="threshold"):
        split(bytes(size), threshold, count)


def test_the_field_is_the_mersenne_prime() -> None:
    assert pow(3, PRIME - 1, PRIME) == 1
    assert PRIME.bit_length() == 521
