"""Which hospitals take part in a round."""

import hashlib
from collections.abc import Sequence

import numpy as np


def cohort(sites: Sequence[str], size: int | None, *, seed: int, round: int) -> list[str]:
    """`size` of the sites drawn without replacement, in name order; all of them where size is None or larger.

    The draw depends on (seed, round) alone, so a resumed run draws the same hospitals.
    """
    ordered = sorted(sites)
    if size is None or size >= len(ordered):
        return ordered
    key = hashlib.sha256(f"cohort/{seed}/{round}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
    return sorted(ordered[i] for i in rng.choice(len(ordered), size, replace=False))
