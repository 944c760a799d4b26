"""What a secure sum of a model's size costs each hospital and the server. See README.md."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedimaging.aggregation.secure_sum import FixedPoint, SecureSumServer, SecureSumSite, Terms, default_threshold
from fedimaging.aggregation.secure_sum.terms import Masked

T = TypeVar("T")
FIXED = FixedPoint(limit=8.0)


class Clock:
    """Seconds by step and party."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, what: str, step: Callable[..., T], *given: object) -> T:
        """Do a step and keep its time."""
        began = time.perf_counter()
        result = step(*given)
        self.seconds.setdefault(what, []).append(time.perf_counter() - began)
        return result


def measure(hospitals: int, size: int, drop: int) -> dict[str, float]:
    """One sum with `drop` hospitals lost after sharing; checked against the plain sum."""
    identities = {f"hospital_{i:02d}": Ed25519PrivateKey.generate() for i in range(1, hospitals + 1)}
    keys = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
    terms = Terms("cost", keys, default_threshold(hospitals), size, FIXED)
    server, clock = SecureSumServer(terms), Clock()
    sites = {name: SecureSumSite(terms, name, key) for name, key in identities.items()}
    roster = server.roster([clock.time("keys", site.advertise) for site in sites.values()])
    shares = [clock.time("keys", site.share, roster) for site in sites.values()]
    delivered = server.deliver(shares)
    alive = list(sites)[: hospitals - drop]
    plain = np.zeros(size)

    def masked() -> Iterator[Masked]:
        for place, name in enumerate(alive):
            vector = clock.time("made", _update, place, size)
            clock.time("made", np.add, plain, vector, plain)
            yield clock.time("mask", sites[name].mask, delivered[name], vector)

    left = clock.time("receive", server.receive, masked())
    receiving = clock.seconds["receive"][0] - sum(clock.seconds["mask"]) - sum(clock.seconds["made"])
    vows = server.collect({name: sites[name].vow(left) for name in alive})
    opened = [clock.time("keys", sites[name].open_shares, vows) for name in alive]
    total = clock.time("unmask", server.total, opened)
    sealed = sum(len(box) for one in shares for box in one.sealed.values()) / hospitals
    return {
        "hospitals": hospitals, "dropped": drop, "parameters": size,
        "hospital_mask_seconds": statistics.median(clock.seconds["mask"]),
        "hospital_key_seconds": sum(clock.seconds["keys"]) / hospitals,
        "server_receive_seconds": receiving, "server_unmask_seconds": clock.seconds["unmask"][0],
        "sent_by_a_hospital_mb": (4 * size + sealed + 66 * hospitals) / 1e6, "plain_update_mb": 4 * size / 1e6,
        "largest_error": float(np.abs(total - plain).max()), "allowed_error": len(alive) * FIXED.limit / 2**FIXED.bits,
    }  # fmt: skip


def _update(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.01, size).astype(np.float32)


def main() -> None:
    """Measure, print a table, write results/results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hospitals", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--parameters", type=int, default=7_500_000)
    parser.add_argument("--drop", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    heads = ("hospitals", "masks, a hospital", "keys and shares, a hospital", "server, adding", "server, unmasking",
             "sent by a hospital", "largest error (allowed)")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for hospitals in arguments.hospitals:
        row = measure(hospitals, arguments.parameters, arguments.drop)
        rows.append(row)
        cells = (
            f"{hospitals}, {arguments.drop} dropped", f"{row['hospital_mask_seconds']:.2f} s",
            f"{row['hospital_key_seconds']:.3f} s", f"{row['server_receive_seconds']:.2f} s",
            f"{row['server_unmask_seconds']:.2f} s", f"{row['sent_by_a_hospital_mb']:.2f} MB",
            f"{row['largest_error']:.2e} ({row['allowed_error']:.2e})",
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
    out = Path(__file__).parent / "results" / "results.json"
    out.parent.mkdir(exist_ok=True)
    facts = {"machine": platform.machine(), "python": platform.python_version()}
    out.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
