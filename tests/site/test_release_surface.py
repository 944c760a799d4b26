"""Everything that leaves a hospital, against an allow-list: whole messages are taken at the client app and searched.

The data set has planted patient ids and a planted folder name; the network (`wavelet_net`) has ten times more numbers
in buffers than in trainable tensors, so a state dict that slipped out would be seen at once.
"""

import hashlib
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto

from fedimaging.errors import DataError, PrivacyError, SiteRefusal
from fedimaging.federated import flower_internals, wire
from fedimaging.federated.client_app import build_client_app
from fedimaging.federated.in_process import InProcessGrid
from fedimaging.privacy.ledger import Ledger
from fedimaging.runs import hospitals
from fedimaging.runs import simulate as simulation
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site, TrainInstruction
from fedimaging.study.load import parse
from fedimaging.study.schema import Study
from fedimaging.training import local

PATIENT = "PLANTED-PATIENT"
FOLDER = "PLANTED-WARD"
PATIENTS, SITES, ROUNDS = 24, ("north", "south"), 2


def planted(root: Path, *, flipped: str = "", rescanned: str = "") -> Path:
    """A manifest of 16 x 16 pictures under planted names; one patient's label flipped, or one with a second scan."""
    from PIL import Image

    (root / FOLDER).mkdir(parents=True)
    rows = ["image,patient_id,site,label,split"]
    draw = np.random.default_rng(0)
    for number in range(PATIENTS):
        patient, image = f"{PATIENT}-{number:04d}", f"{FOLDER}/{PATIENT}-{number:04d}.png"
        Image.fromarray(draw.integers(0, 255, (16, 16)).astype(np.uint8)).save(root / image)
        label = (number // 2 + (patient == flipped)) % 2
        split = "test" if number % 6 >= 4 else "train"
        rows.append(f"{image},{patient},{SITES[number % 2]},{label},{split}")
        if patient == rescanned:
            Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(root / FOLDER / "second.png")
            rows.append(f"{FOLDER}/second.png,{patient},{SITES[number % 2]},{label},{split}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def study_of(root: Path, release: str = "none", **more: Any) -> Study:
    return parse({
        "name": "surface", "seed": 0,
        "data": {"source": "manifest", "path": "manifest.csv", "root": str(root), "image_size": [16, 16], "channels": 1,
                 "intensity": "unit"},
        "task": {"kind": "binary", "label": "label"}, "hospitals": {"by": "column"},
        "model": {"name": "wavelet_net", "options": {"scales": 2, "angles": 2, "grid": 2}},
        "training": {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 4, "local_epochs": 1},
        "privacy": {"target_epsilon": 8.0, "clip_norm": 1.0, "engine": "loop"},
        "federation": {"rounds": ROUNDS}, "evaluation": {"every": 1, "resamples": 100},
        "policy": {"release_evaluation": release}, "runtime": {"device": "cpu", "workers": 1},
        **more,
    }, "surface")  # fmt: skip


Replies = list[tuple[str, Message]]


def simulated(root: Path, out: Path, release: str, **more: Any) -> Replies:
    """Run the study as the command does; every reply of every hospital with the kind of message it answers."""
    replies: Replies = []

    def capturing(open_site: Any) -> Callable[..., Message]:
        app = build_client_app(open_site)

        def answer(*, message: Message, context: Any) -> Message:
            reply = app(message=message, context=context)
            replies.append((message.metadata.message_type, reply))
            return reply

        return answer

    with pytest.MonkeyPatch.context() as patch, LiveView(ROUNDS, quiet=True) as view:
        patch.setattr(simulation, "build_client_app", capturing)
        simulation.simulate(study_of(root, release, **more), out, Options(report=False, workers=1), view)
    return replies


def surface(reply: Message) -> dict[str, dict[str, str]]:
    """Record -> key -> what stands there: a type, or dtype and shape."""
    assert not reply.has_error()
    shown: dict[str, dict[str, str]] = {}
    for name, record in reply.content.items():
        if isinstance(record, ArrayRecord):
            arrays = {key: array.numpy() for key, array in record.items()}
            shown[name] = {key: f"{array.dtype}{array.shape}" for key, array in arrays.items()}
        else:
            shown[name] = {key: type(value).__name__ for key, value in dict(record).items()}
    return shown


def leaks(reply: Message, words: tuple[str, ...] = (PATIENT, FOLDER)) -> list[str]:
    """Which planted words stand anywhere in the message, in any encoding, as it travels by pipe or by gRPC."""
    content = pickle.dumps(reply) + message_to_proto(reply).SerializeToString()
    ids = [f"{PATIENT}-{number:04d}" for number in range(PATIENTS)]
    sought = {word.encode(code) for word in words for code in ("utf-8", "utf-16-le", "utf-32-le")}
    hashed = {digest(name.encode()).hexdigest().encode() for name in ids for digest in (hashlib.sha256, hashlib.md5)}
    return [needle.decode("latin-1") for needle in sought | hashed if needle in content]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "data")


@pytest.fixture(scope="module")
def replies_of(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Replies]:
    """The replies of one simulation for each policy, run when first asked for."""
    return cache(lambda release: simulated(root, tmp_path_factory.mktemp("run") / "run", release))


@pytest.fixture(params=["none", "coarsened", "noised", "metrics", "scores"])
def captured(request: pytest.FixtureRequest, replies_of: Callable[[str], Replies]) -> tuple[str, Replies]:
    return request.param, replies_of(request.param)


CARD = {"site": {"site": "str", "model": "str", "willing": "bool"}}
TRAINABLE = 42
UPDATE = {"site": {"site": "str", "round": "int"}, "update": {"update": f"float32({TRAINABLE},)"}}
REFUSED = {"site": {"site": "str", "refused": "str"}}
EVALUATED = {"site": {"site": "str", "round": "int", "release": "str"}}
METRICS = EVALUATED | {"metrics": {"loss": "float", "n_patients": "int", "m.auroc": "float"}}
COUNTED = ("auroc", "average_precision", "balanced_accuracy", "sensitivity_at_90_specificity")
NOISED = EVALUATED | {
    "metrics": {"loss": "float", "n_patients": "int", **{f"m.{name}": "float" for name in COUNTED}},
    "totals": {"cells": "float32(1, 2, 16)", "noise_std": "float32()"},
}
SCORES = {"scores": {"scores": "float32(4, 2)", "labels": "int64(4,)", "patient": "int64(4,)"}}
ALLOWED = {  # what the hospital's policy says may leave of an evaluation on its test patients
    "none": {"query": CARD, "train": UPDATE, "evaluate": REFUSED, "evaluate.final": REFUSED},
    "coarsened": {"query": CARD, "train": UPDATE, "evaluate": REFUSED, "evaluate.final": REFUSED},  # too few patients
    "noised": {"query": CARD, "train": UPDATE, "evaluate": NOISED, "evaluate.final": NOISED},
    "metrics": {"query": CARD, "train": UPDATE, "evaluate": METRICS, "evaluate.final": METRICS},
    "scores": {"query": CARD, "train": UPDATE, "evaluate": METRICS, "evaluate.final": METRICS | SCORES},
}


def test_13_nothing_leaves_that_is_not_on_the_list(captured: tuple[str, Replies]) -> None:
    release, replies = captured
    assert {kind for kind, _ in replies} == set(ALLOWED[release])
    assert len(replies) == len(SITES) * (1 + 2 * ROUNDS)  # enrolment, training, evaluation: nobody asked for more
    for kind, reply in replies:
        assert surface(reply) == ALLOWED[release][kind], kind


@pytest.mark.parametrize(("release", "told"), [("coarsened", REFUSED), ("metrics", METRICS), ("scores", METRICS | SCORES)])
def test_13_of_a_hospitals_own_model_leave_figures_alone(root: Path, tmp_path: Path, release: str, told: Any) -> None:
    own = {"kind": "ditto", "steps": 1, "learning_rate": 0.1, "mu": 1.0}
    replies = simulated(root, tmp_path / "run", release, personalisation=own)
    of_own = [reply for kind, reply in replies if kind == "evaluate.personal"]
    assert len(of_own) == len(SITES)
    assert all(surface(reply) == told for reply in of_own)  # too few patients for rounded figures
    assert {kind: surface(reply) for kind, reply in replies if kind != "evaluate.personal"} == ALLOWED[release]
    assert not [found for _, reply in replies for found in leaks(reply)]
    kept = [tmp_path / "run" / "sites" / site / "personal.safetensors" for site in SITES]
    assert all(path.stat().st_size > 4 * TRAINABLE for path in kept)


def test_13_no_patient_no_path_and_no_hash_of_one_is_in_any_byte(captured: tuple[str, Replies]) -> None:
    assert not [found for _, reply in captured[1] for found in leaks(reply)]


def test_13_the_update_is_as_long_as_the_trainable_tensors_and_no_buffer_fits_in(root: Path, tmp_path: Path) -> None:
    site = opened(root, tmp_path)
    assert sum(p.numel() for p in site.bench.model.parameters() if p.requires_grad) == TRAINABLE == site.bench.shared_size
    assert sum(buffer.numel() for buffer in site.bench.model.buffers()) > 10 * TRAINABLE


def test_13_patients_in_released_scores_are_numbers_of_this_reply_only(replies_of: Callable[[str], Replies]) -> None:
    final = [reply for kind, reply in replies_of("scores") if kind == "evaluate.final"]
    assert len(final) == len(SITES)
    for reply in final:
        scores = reply.content["scores"]
        assert isinstance(scores, ArrayRecord)
        assert scores["patient"].numpy().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("change", ["flipped", "rescanned"])
def test_13_another_label_or_scan_of_a_patient_changes_nothing_but_the_tensors(
    change: str, replies_of: Callable[[str], Replies], tmp_path: Path
) -> None:
    before = replies_of("none")
    after = simulated(planted(tmp_path / "data", **{change: f"{PATIENT}-0000"}), tmp_path / "after", "none")
    moved = 0
    for (kind, one), (_, other) in zip(before, after, strict=True):
        assert surface(one) == surface(other)
        for name, record in one.content.items():
            if kind == "train" and name == "update":
                moved += not np.array_equal(_update(one), _update(other))
            else:
                assert dict(record) == dict(other.content[name])
    assert moved > 0


def _update(reply: Message) -> np.ndarray:
    record = reply.content["update"]
    assert isinstance(record, ArrayRecord)
    return record["update"].numpy()


def test_the_search_finds_what_is_planted() -> None:
    flower_internals.take_server_identity(1)
    patient = f"{PATIENT}-0003"
    for record in (
        ConfigRecord({"site": patient}), MetricRecord({patient: 1.0}), ArrayRecord({patient: Array(np.zeros(1))}),
        ArrayRecord({"ids": Array(np.array([patient]))}), ConfigRecord({"file": f"/data/{FOLDER}/1.png"}),
        ConfigRecord({"id": hashlib.sha256(patient.encode()).hexdigest()}),
    ):  # fmt: skip
        assert leaks(Message(RecordDict({"x": record}), 1, "train"))
    assert not leaks(Message(RecordDict({"x": ConfigRecord({"site": "north"})}), 1, "train"))


# What a server may send, and what may go wrong inside.


def opened(root: Path, folder: Path) -> Site:
    """The first hospital of the study, with a folder of its own."""
    study = study_of(root)
    hospitals.make_federation(study, hospitals.load_data(study), folder, "cpu").save()
    return open_simulated_site(folder, 0)


def answer(site: Site | Exception, instruction: TrainInstruction, kind: str = "train") -> Message:
    """The hospital's reply to an instruction, to train, through the client app."""

    def open_site(_: object, study: str) -> Site:
        if isinstance(site, Exception):
            raise site
        return site

    flower_internals.take_server_identity(1)
    with InProcessGrid(build_client_app(open_site), 1) as grid:
        (reply,) = grid.send_and_receive([Message(wire.write_instruction(instruction), 1, kind)])
    return reply


@pytest.mark.parametrize("release", ["noised", "exact", "none"])
def test_13_a_calibration_is_nine_sums_and_the_size_of_their_noise(release: str, tmp_path: Path) -> None:
    root = planted(tmp_path / "data")
    rows = (root / "manifest.csv").read_text().split(",train\n", 8)
    (root / "manifest.csv").write_text(",validation\n".join(rows[:-1]) + ",train\n" + rows[-1])
    plain = study_of(root)
    study = plain.model_copy(update={
        "evaluation": plain.evaluation.model_copy(update={"calibration": "temperature"}),
        "policy": plain.policy.model_copy(update={"release_calibration": release}),
    })
    hospitals.make_federation(study, hospitals.load_data(study), tmp_path / "run", "cpu").save()
    site = open_simulated_site(tmp_path / "run", 0)
    assert len(site.validation_records) > 0
    reply = answer(site, TrainInstruction(study.fingerprint, ROUNDS, site.bench.start), "evaluate.calibrate")
    sums = {"site": {"site": "str", "round": "int"}, "calibration": {"sums": "float32(9,)", "noise_std": "float32()"}}
    assert surface(reply) == (REFUSED if release == "none" else sums)
    assert leaks(reply) == []
    assert charged(site) == (release == "noised")


def charged(site: Site) -> int:
    return sum(charge.steps for charge in Ledger.open_or_create(site.folder / "ledger.sqlite").charges())


def _filled(value: float) -> np.ndarray:
    weights = np.zeros(TRAINABLE, np.float32)
    weights[7] = value
    return weights


@pytest.mark.parametrize(("weights", "code"), [
    (_filled(float("nan")), "weights_not_finite"), (_filled(float("inf")), "weights_not_finite"),
    (_filled(float("-inf")), "weights_not_finite"), (np.zeros((), np.float32), "wrong_shape"),
    (np.zeros(0, np.float32), "wrong_shape"), (np.zeros(TRAINABLE + 1, np.float32), "wrong_shape"),
    (np.zeros((1, TRAINABLE), np.float32), "wrong_shape"), (np.zeros(TRAINABLE, np.int64), "wrong_shape"),
    (np.zeros(TRAINABLE, np.float64), "wrong_shape"), (np.zeros(TRAINABLE, np.complex64), "wrong_shape"),
], ids=str)  # fmt: skip
def test_13_weights_that_cannot_be_are_refused_and_nothing_is_spent(
    weights: np.ndarray, code: str, root: Path, tmp_path: Path
) -> None:
    site = opened(root, tmp_path)
    reply = answer(site, TrainInstruction(site.fingerprint, 1, weights))
    assert surface(reply) == REFUSED
    assert wire.refusal_of(reply.content) == code
    assert charged(site) == 0


@pytest.mark.parametrize("value", [0.0, 1e-45, 3e38], ids=str)
def test_13_any_finite_weights_give_a_finite_bounded_update_or_a_code(value: float, root: Path, tmp_path: Path) -> None:
    """All zeros are weights like any other: a linear model may start there. What was run is charged, released or not."""
    site = opened(root, tmp_path)
    reply = answer(site, TrainInstruction(site.fingerprint, 1, np.full(TRAINABLE, value, np.float32)))
    assert site.plan is not None
    assert charged(site) == site.plan.steps_per_round
    if wire.refusal_of(reply.content) is not None:
        assert surface(reply) == REFUSED
        return
    assert surface(reply) == UPDATE
    assert np.linalg.norm(_update(reply).astype(float)) <= site.policy.maximum_update_norm


SECRET = f"{PATIENT}-0003 in /data/{FOLDER}/{PATIENT}-0003.png has label 1"


@pytest.mark.parametrize(("error", "code"), [
    (RuntimeError(SECRET), "error"), (KeyError(SECRET), "error"), (MemoryError(SECRET), "error"), (DataError(SECRET), "data"),
    (PrivacyError(SECRET), "privacy"), (SiteRefusal(SECRET), "error"), (SiteRefusal("wrong_round", SECRET), "wrong_round"),
    (FileNotFoundError(2, SECRET, f"/data/{FOLDER}"), "error"),
], ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None)  # fmt: skip
def test_13_an_error_inside_training_leaves_as_a_code_only(
    error: Exception, code: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = opened(root, tmp_path)

    def fails(*_: object, **__: object) -> list[object]:
        raise error

    monkeypatch.setattr(local, "private_gradient", fails)
    reply = answer(site, TrainInstruction(site.fingerprint, 1, site.bench.initial))
    assert surface(reply) == REFUSED
    assert wire.refusal_of(reply.content) == code
    assert not leaks(reply)
    assert PATIENT in caplog.text  # told in full here, to the hospital's own people
    assert site.plan is not None
    assert charged(site) == site.plan.steps_per_round  # a crash counts as spent


@pytest.mark.parametrize(("error", "code"), [(DataError(SECRET), "data"), (OSError(SECRET), "error")], ids=["data", "other"])
def test_13_a_hospital_that_cannot_be_opened_says_a_code_only(error: Exception, code: str) -> None:
    reply = answer(error, TrainInstruction("study", 1, np.zeros(TRAINABLE, np.float32)))
    assert surface(reply) == REFUSED
    assert wire.refusal_of(reply.content) == code
    assert not leaks(reply)
