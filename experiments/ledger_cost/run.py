"""What the ledger adds to a hospital's round, in milliseconds. See README.md."""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fedimaging.privacy.accounting import bound_for, calibrate, epsilon
from fedimaging.privacy.budget import Budget, Charge
from fedimaging.privacy.ledger import Ledger

HERE = Path(__file__).parent
Q, STEPS, DELTA = 0.05, 10, 1e-5
LOOKED_AT = (1, 10, 100, 1000)  # rounds already in the ledger
WINDOW = 15  # rounds timed at each of them


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def _bare(folder: Path) -> float:
    """What a round cannot do without: two durable transactions of SQLite, full sync, with nothing checked."""
    connection = sqlite3.connect(folder / f"bare_{time.monotonic_ns()}.sqlite", isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, body TEXT)")

    def round_() -> None:
        for body in ("reserved", "settled"):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO events (body) VALUES (?)", (body * 20,))
            connection.execute("COMMIT")

    found = statistics.median(_milliseconds(round_) for _ in range(WINDOW))
    connection.close()
    return found


def _rounds(path: Path, *, durable: bool) -> dict[int, float]:
    """Median milliseconds of a round's reserve and settle, by the number of rounds before it."""
    last = LOOKED_AT[-1] + WINDOW
    sigma = calibrate(8.0, DELTA, Q, STEPS * last)
    budget, charge = Budget(8.0, DELTA), Charge(sigma, Q, STEPS, "patient")
    Ledger.create(path, durable=durable)
    ledger, bound = Ledger(path, durable=durable), bound_for(budget)

    def round_(number: int) -> None:
        entry = ledger.reserve(study="a" * 64, run="run", round=number, charge=charge, budget=budget, epsilon_of=bound)
        ledger.settle(entry.id, STEPS, released={"update": 40_000_000})

    times = [_milliseconds(lambda number=number: round_(number)) for number in range(1, last + 1)]  # type: ignore[misc]
    assert epsilon(ledger.charges(), DELTA) <= 8.0
    return {before: statistics.median(times[before - 1 : before - 1 + WINDOW]) for before in LOOKED_AT}


def main() -> None:
    """Measure, print, write results/results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the ledgers lie [default: the system's temporary folder]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        folder = Path(temporary)
        bare = _bare(folder)
        durable = _rounds(folder / "hospital.sqlite", durable=True)
        simulated = _rounds(folder / "simulated.sqlite", durable=False)
    facts = {"date": time.strftime("%Y-%m-%d"), "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
             "python": platform.python_version()}
    times = {before: durable[before] / bare for before in LOOKED_AT}
    print(f"two bare durable transactions: {bare:.1f} ms")
    for before in LOOKED_AT:
        print(f"{before:5} rounds in the ledger: hospital {durable[before]:.1f} ms ({times[before]:.1f} times bare), "
              f"simulated {simulated[before]:.1f} ms", flush=True)
    rows = {"bare_ms": bare, "hospital_ms": durable, "times_bare": times, "simulated_ms": simulated}
    (HERE / "results" / "results.json").write_text(json.dumps({"facts": facts, **rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
