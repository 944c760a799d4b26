"""The server's side of a secure sum: it relays, adds up masked vectors, and takes the masks away in the end."""

from collections.abc import Iterable, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedimaging.aggregation.secure_sum import shamir
from fedimaging.aggregation.secure_sum.masks import add_mask, agreed_secret, pair_sign
from fedimaging.aggregation.secure_sum.site import pair_key
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
from fedimaging.errors import PrivacyError


class SecureSumServer:
    """The steps in order: `roster`, `deliver`, `receive`, `collect`, `total`; one masked vector in memory at a time.

    Hospitals may drop out before any step. Errors: PrivacyError with fewer than the threshold left, or with shares that
    do not give back what their hospital committed to; after it this object takes no further step.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._order = InOrder("roster")
        self._adverts: dict[str, Advert] = {}
        self._commitments: dict[str, bytes] = {}
        self._left = Left((), ())
        self._sum = np.zeros(terms.size, np.uint32)

    def roster(self, adverts: Iterable[Advert]) -> tuple[Advert, ...]:
        """All one-time keys, for every hospital; those without a good signature are left out."""
        with self._order.step("roster", then="deliver"):
            good = [a for a in adverts if signed(self.terms, a.site, a.signature, a.statement(self.terms))]
            self.terms.require([advert.site for advert in good], "gave their keys")
            self._adverts = {advert.site: advert for advert in sorted(good, key=lambda a: a.site)}
            return tuple(self._adverts.values())

    def deliver(self, shares: Iterable[Shares]) -> dict[str, dict[str, bytes]]:
        """Receiver -> sender -> sealed shares, for every hospital that shared."""
        with self._order.step("deliver", then="receive"):
            sent = {one.site: one for one in shares if one.sealed.keys() == self._adverts.keys() - {one.site}}
            self.terms.require(list(sent), "shared their secrets")
            self._commitments = {site: sent[site].commitment for site in sorted(sent)}
            return {to: {site: one.sealed[to] for site, one in sent.items() if site != to} for to in sent}

    def receive(self, masked: Iterable[Masked]) -> Left:
        """Add up the masked vectors; returns who is left, for all survivors to vow."""
        with self._order.step("receive", then="collect"):
            survivors = []
            for one in masked:
                if one.vector.shape != self._sum.shape or one.vector.dtype != np.uint32:
                    raise PrivacyError(f"hospital {one.site!r} sent a masked vector of another kind; the sum is aborted.")
                self._sum += one.vector
                survivors.append(one.site)
            self.terms.require(survivors, "sent their vector")
            if not set(survivors) <= self._commitments.keys():
                raise PrivacyError("a hospital that shared no secrets sent a vector; the sum is aborted.")
            self._left = Left(tuple(self._commitments), tuple(sorted(survivors)))
            return self._left

    def collect(self, vows: Mapping[str, bytes]) -> dict[str, bytes]:
        """The vows that hold, for every survivor."""
        with self._order.step("collect", then="total"):
            statement = self._left.statement(self.terms, roster_digest(list(self._adverts.values())))
            good = {s: v for s, v in vows.items() if s in self._left.survivors and signed(self.terms, s, v, statement)}
            self.terms.require(list(good), "vowed the same list")
            return good

    def total(self, opened: Iterable[Opened]) -> np.ndarray:
        """The sum of the survivors' vectors, float64 (P,), to within n * limit / 2^bits for n of them."""
        with self._order.step("total", then="nothing: the sum is done"):
            answers = {one.site: one for one in opened if one.site in self._left.survivors}
            self.terms.require(list(answers), "opened their shares")
            for site in self._left.survivors:
                add_mask(self._sum, self._seed_of(site, answers), -1)
            for site in set(self._left.sharers) - set(self._left.survivors):
                self._cancel(site, answers)
            return self.terms.fixed_point.decode(self._sum)

    def _seed_of(self, site: str, answers: Mapping[str, Opened]) -> bytes:
        seed = self._combined({answer.site: answer.self_masks.get(site) for answer in answers.values()})
        if commitment_of(self.terms, site, seed) != self._commitments[site]:
            raise PrivacyError(f"the shares of hospital {site!r}'s self mask are not what it shared; the sum is aborted.")
        return seed

    def _cancel(self, site: str, answers: Mapping[str, Opened]) -> None:
        """Take away the masks that the survivors share with a hospital that dropped out."""
        secret = X25519PrivateKey.from_private_bytes(
            self._combined({answer.site: answer.mask_secrets.get(site) for answer in answers.values()})
        )
        if secret.public_key().public_bytes_raw() != self._adverts[site].mask_key:
            raise PrivacyError(f"the shares of hospital {site!r}'s pairwise secret are not what it shared; the sum is aborted.")
        for peer in self._left.survivors:
            key = pair_key(agreed_secret(secret, self._adverts[peer].mask_key), self.terms, site, peer)
            add_mask(self._sum, key, -pair_sign(peer, site))

    def _combined(self, shares: Mapping[str, bytes | None]) -> bytes:
        """A secret from shares by the name of who held them; a share's number is its holder's place in the roster."""
        place = {name: x for x, name in enumerate(self._adverts, start=1)}
        return shamir.combine({place[name]: share for name, share in shares.items() if share}, self.terms.threshold)
