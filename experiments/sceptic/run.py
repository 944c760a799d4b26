"""The fifteen tests that a sceptic would run, each number computed afresh beside what was expected. See README.md."""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import claims
import draws
import gradients
import surface
import torch
from rows import Row

TESTS: dict[int, tuple[str, Callable[[], list[Row]]]] = {
    1: ("Accountant vectors", claims.accountant_vectors), 2: ("Exact single release", claims.single_release),
    3: ("Independence", gradients.independence), 4: ("Oracle gradients", gradients.oracle),
    5: ("Sensitivity by removal", gradients.removal), 6: ("Patient unit", gradients.patient_unit),
    7: ("Ledger across rounds and crashes", claims.ledger_across_crashes), 8: ("Noise moments", draws.noise_moments),
    9: ("No seed reuse", draws.no_seed_reuse), 10: ("Poisson sampler", draws.poisson_sampler),
    11: ("Denominator", gradients.denominator), 12: ("White-box canary audit", draws.canary_audit),
    13: ("Release surface", surface.release_surface), 14: ("Group and site arithmetic", claims.group_and_site),
    15: ("Secure sum and inversion", surface.secure_sum),
}  # fmt: skip


HEAD = "| test | what | expected | measured | verdict |\n|---|---|---|---|---|"


def main() -> None:
    """Run the tests, print the table; all of them: write results/. Exit code 1 where one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", type=int, choices=sorted(TESTS), default=sorted(TESTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # thousands of tiny steps: threads would only wait for each other
    print(HEAD)
    found: dict[int, dict[str, Any]] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as store:
        os.environ["FEDIMAGING_CACHE"] = store
        for number in arguments.only:
            found[number] = _run(number)
            print(*_lines(number, found[number]), sep="\n", flush=True)
    held = [row["holds"] for test in found.values() for row in test["rows"]]
    failed, seconds = held.count(False), time.monotonic() - began
    print(f"\n{len(held)} rows of {len(found)} tests, {failed} fail; {seconds:.0f} s")
    if arguments.only == sorted(TESTS):
        _keep(found, seconds)
    sys.exit(1 if failed else 0)


def _run(number: int) -> dict[str, Any]:
    name, test = TESTS[number]
    start = time.monotonic()
    rows = [asdict(row) for row in test()]
    return {"name": name, "seconds": round(time.monotonic() - start, 1), "rows": rows}


def _lines(number: int, test: dict[str, Any]) -> list[str]:
    return [
        f"| {number} {test['name']} | {row['what']} | {row['expected']} | {row['measured']} | "
        f"{'holds' if row['holds'] else '**FAILS**'} |" for row in test["rows"]
    ]


def _keep(found: dict[int, dict[str, Any]], seconds: float) -> None:
    """results/results.json with the machine, results/table.md to read."""
    facts = {
        "date": str(datetime.date.today()), "seconds": round(seconds), "machine": platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "torch": torch.__version__,
    }
    out = Path(__file__).parent / "results"
    out.mkdir(exist_ok=True)
    whole = json.dumps({"facts": facts, "tests": found}, indent=2, ensure_ascii=False)
    (out / "results.json").write_text(whole + "\n", encoding="utf-8")
    table = [HEAD, *(line for number, test in found.items() for line in _lines(number, test))]
    (out / "table.md").write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
