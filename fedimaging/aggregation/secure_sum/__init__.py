"""A secure sum: the server learns the sum of the hospitals' vectors, and no single one, also where some drop out.

A library, and NOT part of a federation: no study turns it on, and no report claims it. Its four exchanges a round would
need messages and kept state of their own; `experiments/secure_sum/` measures what it would cost. It would add nothing to
epsilon, which each hospital's own noise gives; it would hide a hospital's update from a server that is only curious.

The protocol is that of Bonawitz et al. 2017 (Practical Secure Aggregation for Privacy-Preserving Machine Learning), with
the signed round of consistency that makes it hold against a server that lies, here as state machines without a network:

1. `SecureSumSite.advertise`: two one-time X25519 keys, signed with the hospital's own Ed25519 key, which all pin.
2. `share`: the seed of a self mask and the secret of the pairwise masks, each in Shamir shares, sealed for each peer.
3. `mask`: the vector in fixed point, plus the self mask, plus or minus one mask for each peer.
4. `vow`: each hospital signs who is left, once. `open_shares`: with enough vows, a share of the self mask of whoever is
   left, or of the pairwise secret of whoever is not; never both of one hospital. `SecureSumServer.total` takes the masks
   away.

What is trusted: with threshold t of n hospitals, the server together with fewer than 2 t - n hospitals learns the sum of
at least t vectors, and nothing else about the others'. With fewer than t hospitals left the sum aborts. A hospital that
lies can spoil the sum unseen: who needs to defend against that cannot hide single updates.
"""

from fedimaging.aggregation.secure_sum.fixed_point import FixedPoint
from fedimaging.aggregation.secure_sum.server import SecureSumServer
from fedimaging.aggregation.secure_sum.site import SecureSumSite
from fedimaging.aggregation.secure_sum.terms import Terms, default_threshold

__all__ = ["FixedPoint", "SecureSumServer", "SecureSumSite", "Terms", "default_threshold"]
