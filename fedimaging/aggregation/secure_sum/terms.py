"""The public terms of one sum, equal at the server and at every hospital, and the messages that travel under them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedimaging.aggregation.secure_sum.fixed_point import FixedPoint
from fedimaging.errors import PrivacyError, bad_value

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Terms:
    """session: unique for each sum, e.g. study fingerprint and round. keys: each hospital's Ed25519 public key (32 bytes),
    known to all beforehand and not from the server. threshold: how many must be left; above half of them, at least 3 (the
    sum of two tells each of them the other). size: length P of the vectors.
    """

    session: str
    keys: Mapping[str, bytes]
    threshold: int
    size: int
    fixed_point: FixedPoint

    def __post_init__(self) -> None:
        n = len(self.keys)
        if not (3 <= self.threshold <= n and 2 * self.threshold > n):
            rule = f"must be at least 3, more than half of the {n} hospitals and at most all of them"
            raise PrivacyError(bad_value("threshold", self.threshold, rule, "take default_threshold"))
        if n > self.fixed_point.most_values:
            rule = f"is more than the {self.fixed_point.most_values} values that a sum of {self.fixed_point.bits} bits may have"
            raise PrivacyError(bad_value("hospitals", n, rule, "lower fixed_point.bits"))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it: in every key and every signature, so that parties with other terms get nothing."""
        whole = [
            self.session, {name: key.hex() for name, key in self.keys.items()}, self.threshold, self.size,
            self.fixed_point.limit, self.fixed_point.bits,
        ]
        return hashlib.sha256(json.dumps(["fedimaging secure sum 1", *whole], sort_keys=True).encode()).digest()

    def require(self, names: Sequence[str] | set[str], doing: str) -> None:
        """Error: PrivacyError unless at least `threshold` different hospitals of these terms are there."""
        known = set(names) & self.keys.keys()
        if len(known) < self.threshold or len(known) != len(names):
            raise PrivacyError(
                f"{len(known)} of {len(self.keys)} hospitals {doing}, at least {self.threshold} are needed, each once; "
                "the sum is aborted and tells nobody anything."
            )


@dataclass(frozen=True)
class Advert:
    """One hospital's one-time public keys: for sealing shares, and for pairwise masks. `signature` is its Ed25519 key's."""

    site: str
    sealing_key: bytes
    mask_key: bytes
    signature: bytes

    def statement(self, terms: Terms) -> bytes:
        """What is signed."""
        return b"keys" + terms.digest + self.sealing_key + self.mask_key + self.site.encode()


@dataclass(frozen=True)
class Shares:
    """One hospital's sealed shares for each peer, and a hash by which the server knows the seed of the self mask again."""

    site: str
    sealed: Mapping[str, bytes]
    commitment: bytes


@dataclass(frozen=True)
class Masked:
    """One hospital's masked vector (P,) uint32."""

    site: str
    vector: np.ndarray


@dataclass(frozen=True)
class Left:
    """Who shared secrets, and who of them sent a masked vector: sorted names."""

    sharers: tuple[str, ...]
    survivors: tuple[str, ...]

    def statement(self, terms: Terms, roster: bytes) -> bytes:
        """What every survivor signs, once; `roster` is the digest of all one-time keys."""
        return b"left" + terms.digest + roster + json.dumps([self.sharers, self.survivors]).encode()


@dataclass(frozen=True)
class Opened:
    """One hospital's shares: of the self masks of the survivors, and of the pairwise secrets of those that dropped out."""

    site: str
    self_masks: Mapping[str, bytes]
    mask_secrets: Mapping[str, bytes]


def signed(terms: Terms, site: str, signature: bytes, statement: bytes) -> bool:
    """Whether this is the signature of the key that the terms pin for the hospital."""
    if site not in terms.keys:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(terms.keys[site]).verify(signature, statement)
    except InvalidSignature:
        return False
    return True


def roster_digest(roster: Sequence[Advert]) -> bytes:
    """SHA-256 over all one-time keys, in the order of names."""
    rows = [[advert.site, advert.sealing_key.hex(), advert.mask_key.hex()] for advert in sorted(roster, key=lambda a: a.site)]
    return hashlib.sha256(json.dumps(rows).encode()).digest()


def commitment_of(terms: Terms, site: str, seed: bytes) -> bytes:
    """A hash that fixes the seed of a self mask and hides its 256 random bits."""
    return hashlib.sha256(b"self mask" + terms.digest + seed + site.encode()).digest()


def default_threshold(sites: int) -> int:
    """More than two thirds of the hospitals, at least 3: holds against the server with a third of them."""
    return max(3, 2 * sites // 3 + 1)


class InOrder:
    """Steps that happen in one order and once each; whatever goes wrong in one ends them all."""

    def __init__(self, first: str) -> None:
        self._next = first

    @contextmanager
    def step(self, name: str, then: str) -> "Iterator[None]":
        """Do step `name`, after which only `then` may follow. Error: PrivacyError for any other, and it is the end."""
        expected, self._next = self._next, "nothing: the sum is aborted"
        if name != expected:
            raise PrivacyError(f"the secure sum was asked to {name!r}, what comes next is {expected!r}; the sum is aborted.")
        yield
        self._next = then
