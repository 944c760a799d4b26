"""What must hold after every fault: the books of all hospitals, and the model."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faults import Done, Fault
from safetensors.numpy import load_file
from stage import ROUNDS, SITES, STEPS, Stage

from fedimaging.aggregation.mean import StreamingMean
from fedimaging.aggregation.server_optimizers import server_step
from fedimaging.errors import FedimagingError
from fedimaging.federated.rounds import ServerState, final_weights, first_state
from fedimaging.privacy.ledger import Ledger
from fedimaging.runs.run_dir import RunDir
from fedimaging.site import audit_log
from fedimaging.site.folder import SiteFolder
from fedimaging.site.hospital import open_hospital_site
from fedimaging.site.simulated import workbench_of
from fedimaging.site.site import TrainInstruction
from fedimaging.study.load import load

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Books:
    """Of all hospitals together: steps that were charged and that ran; rounds that went on from a checkpoint, and that were
    trained anew; rounds in which a hospital's update was not used."""

    charged: int
    run: int
    resumed: int
    anew: int
    missed: list[str]
    broken: list[str]


def books(stage: Stage, done: Done, fault: Fault) -> Books:
    """Read and verify all ledgers and logs."""
    rows = {row["round"]: row for row in stage.rows()}
    missed = [f"{site} in {number}" for number, row in sorted(rows.items()) for site in SITES if site not in row["sites"]]
    broken = list(done.broken)
    if len(rows) != ROUNDS:
        broken.append(f"{len(rows)} of {ROUNDS} rounds")
    if missed and not fault.may_miss:
        broken.append(f"rounds without a hospital: {', '.join(missed)}")
    charged = run = resumed = anew = 0
    for site in SITES:
        try:
            steps, again, went_on = _ledger(stage.folder / site)
        except FedimagingError as error:
            broken.append(f"{site}: {error}")
            continue
        ran = stage.traced(site)
        charged, run, anew, resumed = charged + steps, run + ran, anew + again, resumed + went_on
        if ran > steps:
            broken.append(f"{site} ran {ran} steps and was charged {steps}")
    for log in [stage.folder / "server" / "audit.jsonl", *(stage.folder / site / "audit.jsonl" for site in SITES),
                *(stage.folder / site / "approvals.jsonl" for site in SITES)]:
        try:
            audit_log.read(log)
        except FedimagingError as error:
            broken.append(str(error))
    return Books(charged, run, resumed, anew, missed, broken)


def _ledger(folder: Path) -> tuple[int, int, int]:
    """Steps charged, rounds that were begun anew, rounds that went on from a checkpoint. Error: LedgerError."""
    ledger = Ledger(folder / "ledger.sqlite", folder / "ledger.head")
    whole = Counter(
        row.facts["round"] for row in ledger.rows() if row.kind == "reserved" and row.facts["charge"]["steps"] == STEPS)
    resumed = sum(bool(event.get("resumed")) for event in audit_log.read(folder / "audit.jsonl"))
    return sum(charge.steps for charge in ledger.charges()), sum(whole.values()) - len(whole), resumed


def weights_of(stage: Stage) -> dict[str, np.ndarray]:
    """The final model of the run."""
    (path,) = stage.folder.glob("server/runs/*/weights.safetensors")
    return load_file(path)


def again_in_peace(laid_out: Path, stage: Stage, done: Done, folder: Path) -> dict[str, np.ndarray]:
    """The same hospitals, from their folders as they were laid out, asked in one process and with no network between: in
    each round those whose updates the run used. Who opted out does so where it did."""
    shutil.copytree(laid_out, folder)
    study = load(stage.study)
    bench = workbench_of(study, "cpu")
    state = first_state(study, bench.initial[bench.shared])
    for number, row in sorted({row["round"]: row for row in stage.rows()}.items()):
        if done.opted_out and number == done.opted_out[1]:
            (folder / str(done.site) / "opt_out.txt").write_text(done.opted_out[0] + "\n")
        mean = StreamingMean()
        for name in row["sites"]:
            site = open_hospital_site(SiteFolder.open(folder / name), study.fingerprint)
            mean.add(site.train(TrainInstruction(study.fingerprint, number, state.weights)).delta)
        state = ServerState(number, *server_step(state.weights, mean.result(), state.moments, study.federation))
    made = RunDir(folder / "weights")
    made.path.mkdir()
    made.save_weights(bench, final_weights(state))
    shutil.rmtree(folder / "scans")
    return load_file(made.path / "weights.safetensors")


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of any number of two models."""
    return max(float(np.abs(value.astype(np.float64) - other[name]).max()) for name, value in one.items())


def compared(difference: float, with_what: str, broken: list[str]) -> str:
    """In words; too large a difference is broken."""
    if not difference <= _TOLERANCE:
        broken.append(f"weights are {difference:.2g} from {with_what}")
    return f"{'same bits as' if difference == 0 else f'{difference:.1g} from'} {with_what}"


def facts(value: Any) -> str:
    """A number of seconds, or that there is none."""
    return "-" if value is None else f"{value:.0f} s"
