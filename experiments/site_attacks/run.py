"""Attacks on a hospital, each carried out for real against a running hospital process. See README.md."""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import code_and_leaks
import messages
import transport
from hostile import Operator, code_that_writes
from rows import HEAD, Row, Scene, Try, carry_out, still_serves
from stage import Stage

HERE = Path(__file__).parent


def honest_study(stage: Stage) -> list[Try]:
    """After all that, the hospital trains another approved study to its end, by `fedimaging server run`."""
    before = stage.look()
    process = stage.start("honest", "server", "run", "server", "server/honest.yaml", "--quiet")
    code = process.wait(300)
    after = stage.look()
    reports = list(stage.server.path.glob("runs/honest-*/report.json"))
    rounds = len(json.loads(reports[0].read_text())["rounds"]) if reports else 0
    return [
        Try("another approved study, with `fedimaging server run`", "exit code 0", f"exit code {code}"),
        Try("its rounds", str(stage.second.federation.rounds), str(rounds)),
        Try("ε grew", "yes", "yes" if after.epsilon > before.epsilon else "no"),
        Try("the hospital is the process that was started first, and alive", "yes", "yes" if after.alive else "no"),
        *code_and_leaks.asked_for(stage), *code_and_leaks.searched(stage),
    ]


def attack(stage: Stage, only: list[str]) -> list[Row]:
    """All attacks, one after the other, in one life of the hospital's process."""
    attacks = [*code_and_leaks.FIRST, *messages.ATTACKS, *transport.ATTACKS, *code_and_leaks.LAST]
    rows = []
    with Operator(stage.server, code_that_writes(code_and_leaks.marks_of(stage))) as operator:
        scene = Scene(stage, operator)
        still_serves(scene)  # which decodes the scans: files that are no attack's
        for one in attacks:
            if only and not any(word in one.name for word in (*only, "honest")):
                continue
            rows.append(carry_out(one, scene))
            print(rows[-1].line(), flush=True)
        if not only or "control" in only:
            rows.append(_checked("(Flower's own node, for comparison)", [code_and_leaks.stock_node(scene)]))
    if not only:
        rows.append(_checked("(an honest study, after all that)", honest_study(stage)))
    return rows


def _checked(name: str, tries: list[Try]) -> Row:
    faults = tuple(f"{one.sent}: {one.got}, not {one.expected}" for one in tries if one.got != one.expected)
    row = Row(name, tries, "", (0.0, 0.0), (), 0.0, faults)
    print(f"{name}: {'; '.join(f'{one.sent}: {one.got}' for one in tries)} {'**FAILS**' if faults else 'holds'}", flush=True)
    return row


def main() -> int:
    """Run the attacks, print the table; a whole run writes results/. Exit code 1 where a row fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="words of the rows' names")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attacks") as folder, Stage(Path(folder)) as stage:
        try:
            print(HEAD)
            rows = attack(stage, asked.only)
        except BaseException:
            print((stage.folder / "hospital.log").read_text()[-3000:], file=sys.stderr)
            raise
    failed = [row for row in rows if not row.holds]
    tries, seconds = sum(len(row.tries) for row in rows), time.monotonic() - began
    print(f"\n{len(rows)} rows, {len(failed)} fail; {tries} tries; {seconds:.0f} s")
    if not asked.only:
        _keep(rows, seconds)
    return 1 if failed else 0


def _keep(rows: list[Row], seconds: float) -> None:
    out = HERE / "results"
    out.mkdir(exist_ok=True)
    (out / "table.md").write_text("\n".join([HEAD, *(row.line() for row in rows)]) + "\n", encoding="utf-8")
    facts = {
        "date": str(datetime.date.today()), "seconds": round(seconds), "machine": platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), **{name: version(name) for name in ("flwr", "torch", "numpy", "httpx")},
    }
    tree = {"facts": facts, "rows": [asdict(row) | {"holds": row.holds} for row in rows]}
    (out / "results.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
