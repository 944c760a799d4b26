"""The faults: each is done to a running federation, in the middle of a round, and ends."""

import contextlib
import csv
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from network import Namespaces, run
from PIL import Image
from stage import DEADLINE_SECONDS, Slowly, Stage

from fedimaging.data.splits import split_by_patient
from fedimaging.privacy.ledger import Ledger
from fedimaging.study.load import load

ONE = "hospital_02"
AWAY_SECONDS, CUT_SECONDS, CLOCK_SECONDS = 10.0, 120.0, 600
_DISK_MB = 8
_CLOCKS = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@dataclass
class Done:
    """A fault that is over: the moment when its cause ended, what more was seen, and what was lost by design."""

    ended: float
    site: str | None = ONE
    seen: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    opted_out: tuple[str, int] | None = None


@dataclass(frozen=True)
class Fault:
    """`what`: in words. `prepare`: before anything starts; a context. `study`: "patient" waits for every hospital, "deadline"
    does not. `may_miss`: rounds may go on without the hospital. `needs`: why it cannot be made on a machine, or ""."""

    what: str
    make: Callable[[Stage], Done]
    study: str = "patient"
    may_miss: bool = False
    prepare: Callable[[Stage], contextlib.AbstractContextManager[object]] = lambda stage: contextlib.nullcontext()
    needs: Callable[[Stage], str] = lambda stage: ""


def hospital_killed(stage: Stage) -> Done:
    """kill -9 inside a round, started again after ten seconds."""
    stage.mid_round(ONE, after=2)
    return _killed(stage, ONE)


def _killed(stage: Stage, name: str, *, resume: bool = False) -> Done:
    stage.kill(name)
    time.sleep(AWAY_SECONDS)
    return Done(stage.start(name, resume=resume), ONE if name == ONE else None)


def server_killed(stage: Stage) -> Done:
    """`server start`, kill -9 while hospitals train."""
    stage.mid_round(ONE, after=2)
    return _killed(stage, "start")


def study_killed(stage: Stage) -> Done:
    """`server run`, kill -9 while hospitals train."""
    stage.mid_round(ONE, after=2)
    return _killed(stage, "run", resume=True)


def cable_pulled(stage: Stage) -> Done:
    """The hospital's network is down for two minutes; it knows."""
    net = _cables(stage)
    stage.mid_round(ONE, after=2)
    net.pull_cable(ONE)
    time.sleep(CUT_SECONDS)
    net.plug_cable(ONE)
    return Done(time.monotonic())


def packets_swallowed(stage: Stage) -> Done:
    """Every packet vanishes for two minutes; nobody is told."""
    net = _cables(stage)
    stage.mid_round(ONE, after=2)
    net.swallow(ONE, True)
    time.sleep(CUT_SECONDS)
    net.swallow(ONE, False)
    return Done(time.monotonic())


def _cables(stage: Stage) -> Namespaces:
    assert isinstance(stage.net, Namespaces)
    return stage.net


def slower_than_the_deadline(stage: Stage) -> Done:
    """The hospital gets so little of its processor that a round takes it three deadlines; then all of it again."""
    stage.until(lambda: stage.rounds() >= 2)
    usual = min(row["seconds"]["training"] for row in stage.rows())
    times = max(4.0, 3 * DEADLINE_SECONDS / usual)
    began = stage.mid_round(ONE, after=stage.rounds())
    released = _count(stage, "released")
    with Slowly(stage.running[ONE], times):
        stage.until(lambda: _count(stage, "released") > released)
        late = stage.rounds() + 1
    used = [row["round"] for row in stage.rows() if ONE in row["sites"]]
    broken = [f"it was not three deadlines late: round {began} used its update"] if began in used or began == late else []
    seen = [f"slowed {times:.0f} times: its update of round {began} left in round {late}, and was not used"]
    return Done(time.monotonic(), seen=seen, broken=broken)


def _count(stage: Stage, event: str) -> int:
    return sum(row["event"] == event for row in stage.events(ONE))


@contextlib.contextmanager
def small_disk(stage: Stage) -> Iterator[None]:
    """The hospital's folder on a disk of its own of a few MB."""
    folder, aside = stage.folder / ONE, stage.folder / "aside"
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=0700", "tmpfs", str(folder))
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield
    finally:
        stage.close()
        shutil.rmtree(aside)
        shutil.copytree(folder, aside)  # what it wrote is judged after the disk is gone
        run("umount", str(folder))
        folder.rmdir()
        aside.rename(folder)


def disk_full(stage: Stage) -> Done:
    """Not a byte is left inside a round; a minute later there is room again."""
    stage.mid_round(ONE, after=2)
    ballast = stage.folder / ONE / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    free = os.statvfs(stage.folder / ONE)
    charged = _charged(stage)
    time.sleep(60.0)
    seen = [f"{free.f_bavail * free.f_frsize} bytes free for 60 s; charged meanwhile: {_charged(stage) - charged} steps"]
    ballast.unlink()
    return Done(time.monotonic(), seen=seen)


def _charged(stage: Stage) -> int:
    folder = stage.folder / ONE
    return sum(charge.steps for charge in Ledger(folder / "ledger.sqlite", folder / "ledger.head").charges())


@contextlib.contextmanager
def own_clock(stage: Stage) -> Iterator[None]:
    """The hospital's process sees a clock that a file sets."""
    _set_clock(stage, 0)
    stage.extra[ONE] = {
        "LD_PRELOAD": str(_CLOCKS[0]), "FAKETIME_TIMESTAMP_FILE": str(stage.folder / "clock"), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
    }
    yield


def _set_clock(stage: Stage, seconds: int) -> None:
    new = stage.folder / "clock.new"
    new.write_text(f"{seconds:+d}s\n")
    new.rename(stage.folder / "clock")


def clock_wrong(seconds: int) -> Callable[[Stage], Done]:
    """The hospital's clock jumps by so many seconds inside a round, and is set right a minute later."""

    def make(stage: Stage) -> Done:
        stage.mid_round(ONE, after=2)
        before = len(stage.events(ONE))
        _set_clock(stage, seconds)
        jumped = time.time()
        time.sleep(60.0)
        off = [event["time"] - jumped for event in stage.events(ONE)[before:]]
        _set_clock(stage, 0)
        seen = [f"its log says {off[0]:+.0f} s meanwhile" if off else "it logged nothing meanwhile"]
        return Done(time.monotonic(), seen=seen)

    return make


def opted_out(stage: Stage) -> Done:
    """Between two rounds a patient is put on the list, and the file of their scan is taken away."""
    stage.until(lambda: stage.rounds() >= 3)
    scans = stage.folder / "scans" / ONE
    with (scans / "manifest.csv").open() as file:
        images = {row["patient_id"]: scans / row["image"] for row in csv.DictReader(file)}
    gone = _trains(stage, list(images))
    pixels = (np.asarray(Image.open(images[gone]), np.float32) / 255).tobytes()  # as a study with intensity: unit keeps them
    broken = [] if _in_store(stage, pixels) else ["the patient's decoded scan was never in the store: nothing is shown"]
    with (stage.folder / ONE / "opt_out.txt").open("a") as file:
        file.write(f"{gone}\n")
    moment = time.monotonic()
    # A round that is under way ends with the data it began with, all in memory: no later one may open this file.
    images[gone].unlink()
    first = stage.first_round_after("left_out_changed", ONE)
    if _in_store(stage, pixels):
        broken.append("the patient's decoded scan is still in the store")
    for path in [*stage.folder.glob(f"{ONE}/store/**/*.json"), *stage.folder.glob(f"{ONE}/audit.jsonl"),
                 *stage.folder.glob("server/**/*.jsonl"), stage.folder / "run.log"]:
        if gone in path.read_text():
            broken.append(f"{path.name} names the patient")
    seen = [f"from round {first} on without the patient, whose image file was gone by then; no decoded copy is left"]
    return Done(moment, seen=seen, broken=broken, opted_out=(gone, first))


def _in_store(stage: Stage, pixels: bytes) -> bool:
    """Whether the hospital keeps these decoded pixels."""
    return any(pixels in path.read_bytes() for path in stage.folder.glob(f"{ONE}/store/**/*.npy"))


def _trains(stage: Stage, patients: list[str]) -> str:
    """One of these patients who trains."""
    names = np.array(patients)
    return str(names[split_by_patient(names, load(stage.study).data.split) == "train"][0])


def nothing(stage: Stage) -> Done:
    """No fault: what a round takes."""
    stage.until(lambda: stage.rounds() >= 2)
    return Done(time.monotonic(), None)


def _needs_cables(stage: Stage) -> str:
    return "" if stage.net.cables else "needs network namespaces (root)"


def _needs_root(stage: Stage) -> str:
    return "" if os.geteuid() == 0 else "needs root, to mount a small disk"


def _needs_clock(stage: Stage) -> str:
    return "" if _CLOCKS else "needs libfaketime (Debian's package faketime)"


FAULTS = {
    "calm": Fault("nothing", nothing),
    "hospital": Fault("a hospital is killed (-9) inside a round, and started again 10 s later", hospital_killed),
    "server": Fault("`server start` is killed (-9) inside a round, and started again 10 s later", server_killed),
    "study": Fault("`server run` is killed (-9) inside a round, and started again with --resume 10 s later", study_killed),
    "cable": Fault("a hospital's network is down for two minutes", cable_pulled, needs=_needs_cables),
    "silence": Fault("all packets of a hospital vanish for two minutes", packets_swallowed, needs=_needs_cables),
    "slow": Fault(
        "a hospital is three times slower than the deadline", slower_than_the_deadline, study="deadline", may_miss=True),
    "disk": Fault("a hospital's disk is full for a minute", disk_full, prepare=small_disk, needs=_needs_root),
    "ahead": Fault(
        "a hospital's clock is ten minutes ahead for a minute", clock_wrong(CLOCK_SECONDS), prepare=own_clock,
        needs=_needs_clock),
    "behind": Fault(
        "a hospital's clock is ten minutes behind for a minute", clock_wrong(-CLOCK_SECONDS), prepare=own_clock,
        needs=_needs_clock),
    "opt-out": Fault("between two rounds a patient opts out", opted_out),
}  # fmt: skip
