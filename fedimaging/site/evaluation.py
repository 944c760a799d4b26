"""What leaves of an evaluation on a hospital's test patients, under each mode of its policy.

`none`: nothing. `coarsened`: metrics on a public grid, nothing at all for few patients; not differentially private.
`noised`: totals over patients with Gaussian noise, charged to the hospital's ledger before the first test patient is
read. `metrics`: exact. `scores`: every scan's, under pseudonyms (simulations only).
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.errors import SiteRefusal
from fedimaging.files import write_json, write_whole
from fedimaging.privacy.released_metrics import PatientTotals, coarsened, overlap_totals, ranking_totals
from fedimaging.results import Arrays, SiteEvaluation
from fedimaging.site.policy import SitePolicy
from fedimaging.training.counted_metrics import counted_metrics
from fedimaging.training.evaluate import Evaluated
from fedimaging.training.tasks import Task


def plain_release(site: str, round: int, found: Evaluated, policy: SitePolicy, *, final: bool) -> SiteEvaluation:
    """The reply of a policy that adds no noise. Error: SiteRefusal("evaluation_not_released") for too few patients."""
    mode = policy.release_evaluation
    if mode == "coarsened":
        least, step = policy.evaluation_least_patients, policy.evaluation_step
        if found.n_patients < least:
            raise SiteRefusal("evaluation_not_released")
        rounded = coarsened({**found.quick_metrics, "loss": found.loss}, step)
        return SiteEvaluation(site, round, rounded.pop("loss"), found.n_patients // least * least, rounded, release=mode)
    scores = found.arrays if final and mode == "scores" else {}
    return SiteEvaluation(site, round, found.loss, found.n_patients, found.quick_metrics, scores, release=mode)


def noised_reply(site: str, round: int, totals: Arrays) -> SiteEvaluation:
    """What leaves: the totals, and metrics computed from them. There is no loss, which has no bound."""
    table = counted_metrics(totals, resamples=0)
    patients = max((interval.n_patients for interval in table.values()), default=0)
    metrics = {name: interval.value for name, interval in table.items()}
    return SiteEvaluation(site, round, math.nan, patients, metrics, release="noised", totals=totals)


def size_of(reply: SiteEvaluation) -> int:
    """Bytes of figures in a reply: loss, number of patients, metrics, and whatever arrays go with them."""
    arrays = [array for part in (reply.predictions, reply.totals, reply.validation, reply.groups) for array in part.values()]
    return 8 * (2 + len(reply.metrics)) + sum(array.nbytes for array in arrays)


class KeptRelease:
    """The last noised release of its kind, in a file: the same question gets the same answer again, at no cost."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> Arrays | None:
        """What was released for this question, if it was the last one."""
        if not self._path.exists():
            return None
        with np.load(self._path, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            return {name: kept[name] for name in kept.files if name != "key"}

    def put(self, key: str, totals: Arrays) -> None:
        """Keep it, by rename."""
        arrays: dict[str, Any] = {"key": key, **totals}

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, **arrays)

        write_whole(self._path, write)


class LastQuestion:
    """The last evaluation that was answered, on disk: which round, of which weights.

    A server that could have any weights evaluated would learn of test patients what no study asks: at one question a
    round it gets as many answers as the study has rounds.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "evaluated.json"

    def check(self, round: int, weights: np.ndarray) -> None:
        """Keep this question as the last. Error: SiteRefusal("replayed_round") for an earlier round, or other weights."""
        digest = hashlib.sha256(weights.tobytes()).hexdigest()
        last = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {"round": -1}
        if round < last["round"] or (round == last["round"] and digest != last["weights"]):
            raise SiteRefusal("replayed_round", f"asked again to evaluate in round {round}, with other weights.")
        if round > last["round"]:
            write_json(self._path, {"round": round, "weights": digest})


def evaluation_totals(found: Evaluated, task: Task) -> PatientTotals:
    """What is released of an evaluation, before its noise. A hospital without test patients gives totals of zero, of the same
    shape: only noise leaves."""
    patient = found.arrays.get("patient", np.zeros(0, np.int64))
    if task.needs_mask:
        return overlap_totals(found.arrays.get("dice", np.zeros((0, task.out_channels - 1))), patient)
    labels = np.zeros((0, task.out_channels) if task.multilabel else 0, np.int64)
    scores = np.zeros((0, task.out_channels))
    return ranking_totals(found.arrays.get("scores", scores), found.arrays.get("labels", labels), patient, task.kind)
