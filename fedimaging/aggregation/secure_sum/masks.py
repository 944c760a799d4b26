"""Masks: streams of uniform 32-bit numbers from full 256-bit keys, and the keys that two hospitals agree on.

Keys come from X25519 by HKDF-SHA256, bound to the terms of the sum and to both names; streams from ChaCha20. A key makes
one stream, so its nonce may be constant.
"""

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedimaging.errors import PrivacyError

_CHUNK = 1 << 18  # numbers at a time: what is added fits the cache
_ZEROS = bytes(4 * _CHUNK)


def agreed_secret(mine: X25519PrivateKey, peer: bytes) -> bytes:
    """The 32 bytes that both ends of an exchange have. Error: PrivacyError for a public key that hides nothing."""
    try:
        return mine.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise PrivacyError("a peer's one-time key is not usable; the sum is aborted.") from None


def derived_key(secret: bytes, purpose: str, terms: bytes, *names: str) -> bytes:
    """A 256-bit key from all 256 bits of a secret, for one purpose, one set of terms and these names in this order."""
    info = b"".join(len(part).to_bytes(4, "big") + part for part in (name.encode() for name in (purpose, *names)))
    return HKDF(SHA256(), length=32, salt=terms, info=info).derive(secret)


def add_mask(vector: np.ndarray, key: bytes, sign: int) -> None:
    """Add (sign 1) or take away (-1) the key's stream, in place, modulo 2^32. vector (P,) uint32."""
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    stream = np.empty(_CHUNK, np.uint32)
    room = stream.data.cast("B")
    operation = np.add if sign > 0 else np.subtract
    for first in range(0, len(vector), _CHUNK):
        piece = vector[first : first + _CHUNK]
        cipher.update_into(_ZEROS[: 4 * len(piece)], room)
        operation(piece, stream[: len(piece)], out=piece)


def pair_sign(mine: str, peer: str) -> int:
    """+1 for the hospital whose name comes first, -1 for the other: their masks cancel in the sum."""
    return 1 if mine < peer else -1
