"""A secure sum carried out by hand, with hospitals that drop out or lie where a test wants them to."""

from collections.abc import Collection

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedimaging.aggregation.secure_sum import FixedPoint, SecureSumServer, SecureSumSite, Terms, default_threshold
from fedimaging.aggregation.secure_sum.terms import Left

FIXED = FixedPoint(limit=4.0)


def made(n: int, size: int = 1000, threshold: int | None = None) -> tuple[Terms, dict[str, Ed25519PrivateKey]]:
    """Terms for hospitals h1 ... hn and their signing keys."""
    identities = {f"h{i}": Ed25519PrivateKey.generate() for i in range(1, n + 1)}
    keys = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
    return Terms("study/3", keys, threshold or default_threshold(n), size, FIXED), identities


def vectors_of(names: Collection[str], size: int = 1000) -> dict[str, np.ndarray]:
    """A vector for each, within the limit."""
    draw = np.random.default_rng(0)
    return {name: draw.uniform(-4, 4, size).astype(np.float32) for name in names}


class Round:
    """The sites and the server of one sum, taken as far as a test wants."""

    def __init__(self, n: int, size: int = 1000, threshold: int | None = None) -> None:
        self.terms, self.identities = made(n, size, threshold)
        self.sites = {name: SecureSumSite(self.terms, name, key) for name, key in self.identities.items()}
        self.server = SecureSumServer(self.terms)
        self.vectors = vectors_of(self.sites, size)
        self.alive = list(self.sites)

    def share(self) -> dict[str, dict[str, bytes]]:
        roster = self.server.roster([self.sites[name].advertise() for name in self.alive])
        return self.server.deliver([self.sites[name].share(roster) for name in self.alive])

    def mask(self) -> Left:
        delivered = self.share_if_needed()
        self.masked = [self.sites[name].mask(delivered[name], self.vectors[name]) for name in self.alive]
        return self.server.receive(self.masked)

    def share_if_needed(self) -> dict[str, dict[str, bytes]]:
        if not hasattr(self, "delivered"):
            self.delivered = self.share()
        return self.delivered

    def drop(self, *names: str) -> None:
        """These hospitals answer no more."""
        self.share_if_needed()
        self.alive = [name for name in self.alive if name not in names]

    def total(self) -> np.ndarray:
        left = self.mask()
        vows = self.server.collect({name: self.sites[name].vow(left) for name in self.alive})
        return self.server.total([self.sites[name].open_shares(vows) for name in self.alive])
