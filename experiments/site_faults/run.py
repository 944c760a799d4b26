"""What happens to a federation of real processes when something breaks, what is lost, and when does training go on?

    python experiments/site_faults/run.py [--only hospital cable …] [--keep FOLDER]

A real server and three hospitals, each in a network namespace with its own folder, over TLS with registered keys, train
generated scans. In each row one thing breaks inside a round. Afterwards the ledgers, the logs and the weights must be those
of a federation that nothing ever happened to. Exit code 1 where anything does not hold.
"""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from faults import FAULTS, Done, Fault
from network import Loopback, Namespaces, network
from stage import ROUNDS, SITES, STEPS, Stage, lay_out
from verdict import again_in_peace, apart, books, compared, facts, weights_of

HERE = Path(__file__).parent
_SLOWEST_SECONDS = 60.0  # training must have gone on by then
_NOISE = re.compile(r"federated: round \d+/|report\.html|evaluation_not_released|^\s|^Traceback")
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ (ERROR|WARNING|INFO) |\x1b\[\d+m|^ERROR +: +")


def one_row(name: str, fault: Fault, laid_out: Path, folder: Path, net: Namespaces | Loopback) -> dict[str, Any]:
    """Run one federation through one fault."""
    stage = Stage(laid_out, folder / name, net, fault.study)
    row: dict[str, Any] = {"row": name, "fault": fault.what}
    missing = fault.needs(stage)
    if missing:
        return row | {"verdict": f"not made: {missing}"}
    try:
        with fault.prepare(stage):
            try:
                stage.begin()
                done = fault.make(stage)
                row |= _recovery(stage, done)
            finally:
                stage.close()
        return row | _judged(stage, done, fault, laid_out, folder)
    except RuntimeError as error:
        (folder / f"{name}.txt").write_text(str(error))
        print(error, flush=True)
        return row | {"broken": [str(error).splitlines()[0]], "verdict": "FAILS"}


def _recovery(stage: Stage, done: Done) -> dict[str, Any]:
    """Wait for the end of the study; how long after the end of the cause training went on."""
    sites, rounds = ([done.site] if done.site else list(SITES)), stage.rounds()
    steps, left = stage.traced(*sites), len(stage.rows())

    def answered() -> bool:
        return stage.traced(*sites) > steps or stage.rounds() > rounds

    def whole() -> bool:
        return any(not done.site or done.site in row["sites"] for row in stage.rows()[left:])

    trained = stage.until(answered) - done.ended
    counted = stage.until(whole) - done.ended
    stage.until(lambda: stage.running["run"].poll() == 0)
    screens = {"server": ["start", "run"], "hospital": [done.site] if done.site else list(SITES)}
    place = f"{stage.folder}/"
    said = {
        who: _words(line.replace(place, "") for name in names for line in stage.said(name)) for who, names in screens.items()}
    seconds = [one["seconds"]["training"] for one in stage.rows()]
    return {"step_seconds": trained, "round_seconds": counted, "usual_round_seconds": sorted(seconds)[len(seconds) // 2],
            "said": said, "seen": done.seen}  # fmt: skip


def _words(lines: Iterable[str]) -> list[str]:
    """What a screen said, each once, without times and rounds."""
    plain = (_STAMP.sub("", _STAMP.sub("", line)).strip() for line in lines if line.strip() and not _NOISE.search(line))
    return list(dict.fromkeys(plain))


def _judged(stage: Stage, done: Done, fault: Fault, laid_out: Path, folder: Path) -> dict[str, Any]:
    read = books(stage, done, fault)
    broken = list(read.broken)
    if fault.may_miss or done.opted_out:
        model = again_in_peace(laid_out, stage, done, folder / f"{stage.folder.name}_again")
        weights = compared(apart(weights_of(stage), model), "the same rounds in one process", broken)
    else:
        weights = compared(apart(weights_of(stage), _simulated(stage, folder)), "`fedimaging simulate`", broken)
    return {"charged": read.charged, "run": read.run, "needed": ROUNDS * STEPS * len(SITES), "resumed": read.resumed,
            "anew": read.anew, "missed": read.missed, "weights": weights, "broken": broken}  # fmt: skip


def _simulated(stage: Stage, folder: Path) -> Any:
    """The weights of the undisturbed simulation, run once for each study."""
    from safetensors.numpy import load_file

    out = folder / f"simulated_{stage.study.stem}"
    if not (out / "weights.safetensors").exists():
        command = ["simulate", str(stage.study), "-o", f"data.root={folder / 'laid_out' / 'scans'}", "--out", str(out)]
        subprocess.run([sys.executable, "-m", "fedimaging.cli", *command, "--no-report", "-q", "--workers", "1"], check=True)
    return load_file(out / "weights.safetensors")


def settled(row: dict[str, Any]) -> dict[str, Any]:
    """With its verdict."""
    if "verdict" in row:
        return row
    slow = max(row["step_seconds"], 0.0)
    if slow > _SLOWEST_SECONDS:
        row["broken"].append(f"training went on only after {slow:.0f} s")
    return row | {"verdict": f"FAILS: {'; '.join(row['broken'])}" if row["broken"] else "holds"}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ("Fault", "Screens of server and hospital", "What was lost", "Training went on, next round done after", "Verdict")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(row: dict[str, Any]) -> str:
    if "step_seconds" not in row:
        return f"| {row['fault']} | | | | {row['verdict']} |"
    told = "<br>".join(f"{who}: “{line[:110]}”" for who in ("server", "hospital") for line in row["said"][who][:3])
    lost = [
        f"charged {row['charged']} steps, run {row['run']}, needed {row['needed']}",
        f"rounds gone on with {row['resumed']}, begun anew {row['anew']}",
        f"not used: {', '.join(row['missed'])}" if row["missed"] else "no hospital missed a round", row["weights"],
    ]
    seen = "".join(f"<br>{line}" for line in row["seen"])
    when = f"{facts(row['step_seconds'])}, {facts(row['round_seconds'])} (a usual round: {row['usual_round_seconds']:.0f} s)"
    return f"| {row['fault']} | {told}{seen} | {'; '.join(lost)} | {when} | {row['verdict']} |"


def main() -> int:
    """Every row asked for; results/ keeps the newest of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS), default=list(FAULTS))
    parser.add_argument("--keep", type=Path, help="a folder for all that is written; what was laid out there is used again")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no process, namespace or mount behind
    with tempfile.TemporaryDirectory(prefix="faults") as temporary, network(SITES) as net:
        folder = asked.keep.absolute() if asked.keep else Path(temporary)
        if not (folder / "laid_out").exists():
            lay_out(folder / "laid_out", net)
        rows = []
        for name in asked.only:
            began = time.monotonic()
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.rmtree(folder / f"{name}_again", ignore_errors=True)
            rows.append(settled(one_row(name, FAULTS[name], folder / "laid_out", folder, net)))
            print(f"{name}: {time.monotonic() - began:.0f} s: {rows[-1]['verdict']}", flush=True)
    path = HERE / "results" / "rows.json"
    path.parent.mkdir(exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept |= {row["row"]: row for row in rows}
    path.write_text(json.dumps({name: kept[name] for name in FAULTS if name in kept}, indent=1, ensure_ascii=False) + "\n")
    text = table([kept[name] for name in FAULTS if name in kept])
    (path.parent / "table.md").write_text(text + "\n")
    print(text)
    return int(any(row["verdict"].startswith("FAILS") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
