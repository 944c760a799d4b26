"""What travels: how instructions and replies are written into Flower records, and read back with suspicion.

Server to hospital: study fingerprint, round, weights. Hospital to server: an update, an evaluation, or a code.
Anything missing, extra or of another type is refused with a code; no field of a message is ever used as a path,
a name to import, or a parameter of training.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedimaging.errors import SiteRefusal
from fedimaging.privacy.tempering import TEMPERATURES
from fedimaging.results import Arrays, SiteCalibration, SiteEvaluation, SiteUpdate
from fedimaging.site.site import TrainInstruction
from fedimaging.spec import EvaluationRelease

REFUSALS = (
    "bad_message", "message_too_large", "study_not_approved", "wrong_round", "replayed_round", "wrong_shape",
    "weights_not_finite", "no_training_data", "budget_exceeded", "update_not_finite", "update_too_large",
    "evaluation_not_released", "calibration_not_released", "against_policy", "outside_hours", "stopping", "disk_full",
    "not_willing", "data", "ledger", "privacy", "run", "site", "study", "error",
)
"""Every code that can leave a hospital."""

_INSTRUCTION, _WEIGHTS, _SITE, _UPDATE, _METRICS, _SCORES, _TOTALS, _CALIBRATION = (
    "instruction", "weights", "site", "update", "metrics", "scores", "totals", "calibration",
)
_VALIDATION, _GROUPS = "validation", "groups"


_CALIBRATION_SHAPES = {"sums": (np.dtype(np.float32), (len(TEMPERATURES),)), "noise_std": (np.dtype(np.float32), ())}


@dataclass(frozen=True)
class SiteCard:
    """A hospital's answer to enrolment: its name, and whether it takes part in this study."""

    site: str
    model: str
    willing: bool


def write_instruction(instruction: TrainInstruction) -> RecordDict:
    """Study fingerprint, round and weights: there is no field to say anything else in."""
    return RecordDict({
        _INSTRUCTION: ConfigRecord({"study": instruction.study, "round": instruction.round}),
        _WEIGHTS: ArrayRecord({_WEIGHTS: Array(instruction.weights)}),
    })


def read_instruction(content: RecordDict) -> TrainInstruction:
    """Read what a server sent. Error: SiteRefusal("bad_message") for anything but exactly the three fields."""
    head, weights = content.get(_INSTRUCTION), content.get(_WEIGHTS)
    if set(content) != {_INSTRUCTION, _WEIGHTS} or not isinstance(head, ConfigRecord):
        raise SiteRefusal("bad_message")
    if not isinstance(weights, ArrayRecord) or set(weights) != {_WEIGHTS} or set(head) != {"study", "round"}:
        raise SiteRefusal("bad_message")
    study, number = head["study"], head["round"]
    if type(study) is not str or type(number) is not int:
        raise SiteRefusal("bad_message")
    return TrainInstruction(study, number, _vector(weights[_WEIGHTS]))


def write_enrolment(study: str) -> RecordDict:
    """Ask a hospital whether it takes part in the study with this fingerprint."""
    return RecordDict({_INSTRUCTION: ConfigRecord({"study": study})})


def read_enrolment(content: RecordDict) -> str:
    """The fingerprint a server asks about. Error: SiteRefusal("bad_message")."""
    head = content.get(_INSTRUCTION)
    if set(content) != {_INSTRUCTION} or not isinstance(head, ConfigRecord) or set(head) != {"study"}:
        raise SiteRefusal("bad_message")
    if type(head["study"]) is not str:
        raise SiteRefusal("bad_message")
    return head["study"]


def study_of(content: RecordDict) -> str:
    """The fingerprint that any message of a server's names. Error: SiteRefusal("bad_message")."""
    head = content.get(_INSTRUCTION)
    study = head.get("study") if isinstance(head, ConfigRecord) else None
    if type(study) is not str:
        raise SiteRefusal("bad_message")
    return study


def write_card(card: SiteCard) -> RecordDict:
    """A hospital's card."""
    return RecordDict({_SITE: ConfigRecord({"site": card.site, "model": card.model, "willing": card.willing})})


def read_card(content: RecordDict) -> SiteCard:
    """Read a card. Error: SiteRefusal("bad_message")."""
    head = _site_head(content)
    if type(head.get("model")) is not str or type(head.get("willing")) is not bool:
        raise SiteRefusal("bad_message")
    return SiteCard(str(head["site"]), str(head["model"]), bool(head["willing"]))


def write_refusal(site: str, code: str) -> RecordDict:
    """A refusal: a known code and nothing else. An unknown code becomes "error"."""
    return RecordDict({_SITE: ConfigRecord({"site": site, "refused": code if code in REFUSALS else "error"})})


def refusal_of(content: RecordDict) -> str | None:
    """The code of a refusal, None for any other reply."""
    head = content.get(_SITE)
    code = head.get("refused") if isinstance(head, ConfigRecord) else None
    if code is None:
        return None
    return code if isinstance(code, str) and code in REFUSALS else "error"


def write_update(update: SiteUpdate) -> RecordDict:
    """An update: site name, round, one vector. No counts, no loss, no metrics."""
    return RecordDict({
        _SITE: ConfigRecord({"site": update.site, "round": update.round}),
        _UPDATE: ArrayRecord({_UPDATE: Array(update.delta)}),
    })


def read_update(content: RecordDict, *, round: int, size: int) -> SiteUpdate:
    """Read a hospital's update as a lying hospital might send it. Error: SiteRefusal with a code."""
    head, arrays = _site_head(content), content.get(_UPDATE)
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {_UPDATE}:
        raise SiteRefusal("bad_message")
    delta = _vector(arrays[_UPDATE])
    if head.get("round") != round:
        raise SiteRefusal("wrong_round")
    if delta.dtype != np.float32 or delta.shape != (size,):
        raise SiteRefusal("wrong_shape")
    if not np.isfinite(delta).all():
        raise SiteRefusal("update_not_finite")
    return SiteUpdate(str(head["site"]), round, delta)


def write_evaluation(evaluation: SiteEvaluation) -> RecordDict:
    """An evaluation: under which mode it leaves, metrics, and where the policy says so scores or noised totals, of
    validation patients too, and what is released of groups."""
    numbers = {"loss": float(evaluation.loss), "n_patients": int(evaluation.n_patients)}
    record = RecordDict({
        _SITE: ConfigRecord({"site": evaluation.site, "round": evaluation.round, "release": evaluation.release}),
        _METRICS: MetricRecord({**numbers, **{f"m.{k}": float(v) for k, v in evaluation.metrics.items()}}),
    })
    parts = {
        _SCORES: evaluation.predictions, _TOTALS: evaluation.totals,
        _VALIDATION: evaluation.validation, _GROUPS: evaluation.groups,
    }
    for key, arrays in parts.items():
        if arrays:
            record[key] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return record


def read_evaluation(content: RecordDict, *, round: int) -> SiteEvaluation:
    """Read an evaluation. Error: SiteRefusal with a code."""
    head, metrics = _site_head(content), content.get(_METRICS)
    if head.get("release") not in get_args(EvaluationRelease):
        raise SiteRefusal("bad_message")
    if not isinstance(metrics, MetricRecord) or not {"loss", "n_patients"} <= set(metrics):
        raise SiteRefusal("bad_message")
    if head.get("round") != round:
        raise SiteRefusal("wrong_round")
    numbers: Mapping[str, object] = dict(metrics)
    if not all(isinstance(value, int | float) for value in numbers.values()):
        raise SiteRefusal("bad_message")
    return SiteEvaluation(
        site=str(head["site"]),
        round=round,
        loss=float(str(numbers["loss"])),
        n_patients=int(str(numbers["n_patients"])),
        metrics={k[2:]: float(str(v)) for k, v in numbers.items() if k.startswith("m.")},
        predictions=_arrays(content.get(_SCORES)),
        release=str(head["release"]),
        totals=_arrays(content.get(_TOTALS)),
        validation=_arrays(content.get(_VALIDATION)),
        groups=_arrays(content.get(_GROUPS)),
    )


def write_calibration(calibration: SiteCalibration) -> RecordDict:
    """A calibration: sums over patients, and the deviation of the noise in them. No counts, no scores."""
    return RecordDict({
        _SITE: ConfigRecord({"site": calibration.site, "round": calibration.round}),
        _CALIBRATION: ArrayRecord({
            "sums": Array(calibration.sums), "noise_std": Array(np.array(calibration.noise_std, np.float32)),
        }),
    })


def read_calibration(content: RecordDict, *, round: int) -> SiteCalibration:
    """Read a calibration as a lying hospital might send it. Error: SiteRefusal with a code."""
    head, arrays = _site_head(content), _arrays(content.get(_CALIBRATION))
    if {name: (array.dtype, array.shape) for name, array in arrays.items()} != _CALIBRATION_SHAPES:
        raise SiteRefusal("bad_message")
    if head.get("round") != round:
        raise SiteRefusal("wrong_round")
    sums, noise_std = arrays["sums"], float(arrays["noise_std"])
    if not (np.isfinite(sums).all() and 0 <= noise_std < math.inf):
        raise SiteRefusal("bad_message")
    return SiteCalibration(str(head["site"]), round, sums, noise_std)


def _arrays(record: object) -> Arrays:
    """The arrays of a record; none where it is absent. Error: SiteRefusal("bad_message")."""
    return {name: _vector(array) for name, array in record.items()} if isinstance(record, ArrayRecord) else {}


def _site_head(content: RecordDict) -> ConfigRecord:
    head = content.get(_SITE)
    if not isinstance(head, ConfigRecord) or type(head.get("site")) is not str:
        raise SiteRefusal("bad_message")
    return head


def _vector(array: Array) -> np.ndarray:
    """Decode one array (NumPy's own format, no pickles) without a copy: it cannot be written to. Error:
    SiteRefusal("bad_message")."""
    try:
        return _view(array)
    except Exception:  # a head may claim any type and any shape, and NumPy stumbles over them in many ways
        raise SiteRefusal("bad_message") from None


def _view(array: Array) -> np.ndarray:
    file = io.BytesIO(array.data)
    if array.stype != "numpy.ndarray" or np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not in NumPy's format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or (fortran and len(shape) > 1) or min(shape, default=0) < 0:
        raise ValueError("not an array of numbers, row by row")
    if len(array.data) != file.tell() + math.prod(shape) * dtype.itemsize:
        raise ValueError("not as many bytes as the head says")
    return np.frombuffer(array.data, dtype, offset=file.tell()).reshape(shape) if math.prod(shape) else np.empty(shape, dtype)
