import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedimaging.aggregation.secure_sum.masks import add_mask, agreed_secret, derived_key, pair_sign
from fedimaging.errors import PrivacyError


def stream(key: bytes, size: int = 1000) -> np.ndarray:
    vector = np.zeros(size, np.uint32)
    add_mask(vector, key, 1)
    return vector


def folded(secret: bytes) -> int:
    """What a mask generator with a seed of 32 bits would see of a secret."""
    return int(np.bitwise_xor.reduce(np.frombuffer(secret, np.uint32)))


def test_15_secrets_that_fold_to_the_same_32_bits_give_different_masks() -> None:
    one = os.urandom(32)
    other = one[4:8] + one[:4] + one[8:]
    assert one != other
    assert folded(one) == folded(other)
    masks = [stream(derived_key(secret, "pairwise mask", b"terms", "h1", "h2")) for secret in (one, other)]
    assert (masks[0] == masks[1]).mean() < 0.01


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 18) + 5])
def test_the_stream_is_chacha20_and_is_taken_away_as_it_was_added(size: int) -> None:
    key, vector = os.urandom(32), np.arange(size, dtype=np.uint32)
    add_mask(vector, key, 1)
    raw = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(4 * size))
    assert np.array_equal(vector - np.arange(size, dtype=np.uint32), np.frombuffer(raw, np.uint32))
    add_mask(vector, key, -1)
    assert np.array_equal(vector, np.arange(size))


def test_two_hospitals_agree_and_their_masks_cancel() -> None:
    a, b = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    one = agreed_secret(a, b.public_key().public_bytes_raw())
    assert one == agreed_secret(b, a.public_key().public_bytes_raw())
    total = np.zeros(100, np.uint32)
    add_mask(total, one, pair_sign("h1", "h2"))
    add_mask(total, one, pair_sign("h2", "h1"))
    assert not total.any()


def test_every_word_of_the_context_makes_another_key() -> None:
    secret = os.urandom(32)
    keys = [
        derived_key(secret, "pairwise mask", b"t", "a", "bc"), derived_key(secret, "pairwise mask", b"t", "ab", "c"),
        derived_key(secret, "pairwise mask", b"t", "bc", "a"), derived_key(secret, "shares", b"t", "a", "bc"),
        derived_key(secret, "pairwise mask", b"u", "a", "bc"), derived_key(os.urandom(32), "pairwise mask", b"t", "a", "bc"),
    ]  # fmt: skip
    assert len(set(keys)) == 6


def test_a_public_key_that_hides_nothing_is_refused() -> None:
    with pytest.raises(PrivacyError, match="not usable"):
        agreed_secret(X25519PrivateKey.generate(), bytes(32))
