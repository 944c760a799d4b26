"""One hospital's side of a secure sum. It trusts no message of the server, and answers each step once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedimaging.aggregation.secure_sum import shamir
from fedimaging.aggregation.secure_sum.masks import add_mask, agreed_secret, derived_key, pair_sign
from fedimaging.aggregation.secure_sum.terms import (
    Advert,
    InOrder,
    Left,
    Masked,
    Opened,
    Shares,
    Terms,
    commitment_of,
    roster_digest,
    signed,
)
from fedimaging.errors import PrivacyError, bad_value

_NONCE = bytes(12)  # a sealing key is used for one message


class SecureSumSite:
    """The steps in order: `advertise`, `share`, `mask`, `vow`, `open_shares`. `identity`: the hospital's own signing key.

    Errors: PrivacyError at whatever does not fit, after which this object takes no further step.
    """

    def __init__(self, terms: Terms, name: str, identity: Ed25519PrivateKey) -> None:
        if terms.keys.get(name) != identity.public_key().public_bytes_raw():
            raise PrivacyError(bad_value("name", name, "is not pinned to this hospital's own key in the terms"))
        self.terms, self.name = terms, name
        self._identity = identity
        self._sealing, self._pairing = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = os.urandom(32)
        self._order = InOrder("advertise")
        self._roster: dict[str, Advert] = {}
        self._self_shares: dict[str, bytes] = {}
        self._secret_shares: dict[str, bytes] = {}
        self._left = Left((), ())

    def advertise(self) -> Advert:
        """Two one-time keys, signed."""
        with self._order.step("advertise", then="share"):
            sealing, mask = (key.public_key().public_bytes_raw() for key in (self._sealing, self._pairing))
            unsigned = Advert(self.name, sealing, mask, b"")
            return replace(unsigned, signature=self._identity.sign(unsigned.statement(self.terms)))

    def share(self, roster: Sequence[Advert]) -> Shares:
        """Seal a share of both secrets for every peer of the roster."""
        with self._order.step("share", then="mask"):
            self._take_roster(roster)
            names = sorted(self._roster)
            self_shares = shamir.split(self._seed, self.terms.threshold, len(names))
            secret_shares = shamir.split(self._pairing.private_bytes_raw(), self.terms.threshold, len(names))
            sealed = {}
            for peer, of_seed, of_secret in zip(names, self_shares, secret_shares, strict=True):
                if peer == self.name:
                    self._self_shares[peer], self._secret_shares[peer] = of_seed, of_secret
                else:
                    sealed[peer] = self._box(self.name, peer).encrypt(_NONCE, of_seed + of_secret, None)
            return Shares(self.name, sealed, commitment_of(self.terms, self.name, self._seed))

    def mask(self, delivered: Mapping[str, bytes], vector: np.ndarray) -> Masked:
        """The vector (P,) under its masks. delivered: what each peer that shared sealed for this hospital."""
        with self._order.step("mask", then="vow"):
            self.terms.require([self.name, *delivered], "shared their secrets")
            if not delivered.keys() <= self._roster.keys():
                raise PrivacyError("a hospital outside the roster shared secrets; the sum is aborted.")
            if vector.shape != (self.terms.size,):
                raise PrivacyError(bad_value("shape of the vector", vector.shape, f"must be ({self.terms.size},)"))
            for peer, sealed in delivered.items():
                self._unseal(peer, sealed)
            masked = self.terms.fixed_point.encode(vector)
            add_mask(masked, self._seed, 1)
            for peer in delivered:
                secret = agreed_secret(self._pairing, self._roster[peer].mask_key)
                add_mask(masked, pair_key(secret, self.terms, self.name, peer), pair_sign(self.name, peer))
            return Masked(self.name, masked)

    def vow(self, left: Left) -> bytes:
        """Sign who is left: this hospital will open nothing for any other list."""
        with self._order.step("vow", then="open_shares"):
            survivors = set(left.survivors)
            self.terms.require(left.survivors, "are left")
            if set(left.sharers) != self._self_shares.keys() or not survivors <= set(left.sharers) or self.name not in survivors:
                raise PrivacyError("the list of who is left is not of this sum; it is aborted.")
            self._left = left
            return self._identity.sign(self._statement())

    def open_shares(self, vows: Mapping[str, bytes]) -> Opened:
        """Shares for the server, once enough survivors vowed the same list: of a peer's self mask where it is left, of its
        pairwise secret where it is not. One list for both, so never both of one peer."""
        with self._order.step("open_shares", then="nothing: the sum is done"):
            true = [
                site for site, vow in vows.items()
                if site in self._left.survivors and signed(self.terms, site, vow, self._statement())
            ]  # fmt: skip
            self.terms.require(true, "vowed the same list")
            dropped = set(self._left.sharers) - set(self._left.survivors)
            return Opened(
                self.name, {peer: self._self_shares[peer] for peer in self._left.survivors},
                {peer: self._secret_shares[peer] for peer in dropped},
            )

    def _take_roster(self, roster: Sequence[Advert]) -> None:
        self.terms.require([advert.site for advert in roster], "gave their keys")
        for advert in roster:
            if not signed(self.terms, advert.site, advert.signature, advert.statement(self.terms)):
                raise PrivacyError(f"the keys of hospital {advert.site!r} are not signed by it; the sum is aborted.")
        if len({key for advert in roster for key in (advert.sealing_key, advert.mask_key)}) != 2 * len(roster):
            raise PrivacyError("two one-time keys of the roster are the same; the sum is aborted.")
        self._roster = {advert.site: advert for advert in roster}
        mine = self._roster.get(self.name)
        if mine is None or mine.mask_key != self._pairing.public_key().public_bytes_raw():
            raise PrivacyError("this hospital's own keys are not in the roster; the sum is aborted.")

    def _unseal(self, peer: str, sealed: bytes) -> None:
        try:
            opened = self._box(peer, self.name).decrypt(_NONCE, sealed, None)
        except InvalidTag:
            raise PrivacyError(f"the shares of hospital {peer!r} were altered on the way; the sum is aborted.") from None
        self._self_shares[peer], self._secret_shares[peer] = opened[: shamir.SHARE_BYTES], opened[shamir.SHARE_BYTES :]

    def _box(self, sender: str, receiver: str) -> ChaCha20Poly1305:
        """The cipher for one message from one hospital to another."""
        peer = receiver if sender == self.name else sender
        secret = agreed_secret(self._sealing, self._roster[peer].sealing_key)
        return ChaCha20Poly1305(derived_key(secret, "shares", self.terms.digest, sender, receiver))

    def _statement(self) -> bytes:
        return self._left.statement(self.terms, roster_digest(list(self._roster.values())))


def pair_key(secret: bytes, terms: Terms, one: str, other: str) -> bytes:
    """The key of the mask of two hospitals, the same for both."""
    return derived_key(secret, "pairwise mask", terms.digest, *sorted((one, other)))
