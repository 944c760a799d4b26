"""Attacks by messages: what a server may say to a hospital, and every way of saying more."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flwr.app import Array, ConfigRecord, RecordDict
from hostile import Answer, instruction
from rows import Attack, Scene, Try
from stage import ROUNDS, VICTIM, study_tree

from fedimaging.federated import wire
from fedimaging.site.simulated import workbench_of
from fedimaging.study.load import load

_Question = tuple[str, str, RecordDict]
"""What is sent, in words; the message's type; its content."""


def ask(scene: Scene, code: str, *questions: _Question) -> list[Try]:
    """Questions that must each be refused with this code."""
    return [scene.refused(words, code, answer(scene, kind, content).text) for words, kind, content in questions]


def answer(scene: Scene, kind: str, content: RecordDict) -> Answer:
    """What the attacked hospital answers."""
    return scene.operator.ask(scene.operator.node(VICTIM), (kind, content))[0]


def weights_of(scene: Scene, shift: float = 0.0) -> np.ndarray:
    """Weights that an honest server could send, float32 (P,)."""
    if "weights" not in scene.kept:
        bench = workbench_of(scene.stage.study, "cpu")
        scene.kept["weights"] = bench.initial[bench.shared]
    start: Any = scene.kept["weights"]
    return np.asarray(start + np.float32(shift), np.float32)


def _told(scene: Scene, round: object = 1, weights: np.ndarray | Array | None = None, **extra: object) -> RecordDict:
    return instruction(scene.stage.study.fingerprint, round, weights_of(scene) if weights is None else weights, **extra)


def _other_study(scene: Scene, words: str, **blocks: Any) -> _Question:
    """The same study but for some of its settings: what the server would run instead."""
    tree = study_tree("attacked")
    for name, block in blocks.items():
        tree[name] = tree[name] | block
    path = scene.stage.server.path / "changed.yaml"
    path.write_text(yaml.safe_dump(tree))
    return words, "train", instruction(load(path).fingerprint, 1, weights_of(scene))


def honest_round(scene: Scene) -> Sequence[Try]:
    """Round 1, as it should be; its answer is kept for the replays."""
    found = answer(scene, "train", _told(scene))
    scene.kept["update"] = found.arrays["update.update"]
    return [Try("round 1 of the approved study, the study's first weights", "site+update", found.text)]


def unapproved_study(scene: Scene) -> Sequence[Try]:
    """Studies that nobody approved, and things that are no fingerprint."""
    names = ("e" * 64, "../../../etc/passwd", scene.stage.study.fingerprint.upper(), scene.stage.study.fingerprint + "\n", "")
    said = ("a fingerprint nobody approved", "a path for a fingerprint", "the approved one in capitals", "… with a line break",
            "an empty one")  # fmt: skip
    return ask(scene, "study_not_approved", *(
        (words, "train", instruction(name, 1, weights_of(scene))) for name, words in zip(names, said, strict=True)))


def weaker_noise(scene: Scene) -> Sequence[Try]:
    """Less noise: as another study, and as fields that do not exist."""
    more = RecordDict(dict(_told(scene)) | {"privacy": ConfigRecord({"noise_multiplier": 0.0})})
    return [
        *ask(scene, "study_not_approved", _other_study(
            scene, "the same study with noise_multiplier 0.01", privacy={"noise_multiplier": 0.01})),
        *ask(
            scene, "bad_message",
            ("noise_multiplier=0.0 in the instruction", "train", _told(scene, noise_multiplier=0.0)),
            ("clip_norm=1e9 in the instruction", "train", _told(scene, clip_norm=1e9)),
            ("a further record with noise_multiplier=0.0", "train", more)),
    ]  # fmt: skip


def more_epochs(scene: Scene) -> Sequence[Try]:
    """More steps: as another study, and as fields that do not exist."""
    return [
        *ask(scene, "study_not_approved", _other_study(
            scene, "the same study with 300 steps a round", training={"local_steps": 300})),
        *ask(
            scene, "bad_message",
            ("epochs=100 in the instruction", "train", _told(scene, epochs=100)),
            ("local_steps=300 in the instruction", "train", _told(scene, local_steps=300))),
    ]  # fmt: skip


def replayed_round(scene: Scene) -> Sequence[Try]:
    """Round 1 again."""
    again = answer(scene, "train", _told(scene))
    same = np.array_equal(again.arrays.get("update.update", np.zeros(0)), np.asarray(scene.kept["update"]))
    return [
        Try("round 1 again, same weights", "the very same answer", "the very same answer" if same else again.text),
        *ask(
            scene, "replayed_round",
            ("round 1 again, other weights", "train", _told(scene, weights=weights_of(scene, 0.1))),
            ("round 1 again, weights that differ in one number", "train", _told(scene, weights=_nudged(scene)))),
    ]  # fmt: skip


def _nudged(scene: Scene) -> np.ndarray:
    weights = weights_of(scene).copy()
    weights[0] = np.nextafter(weights[0], np.float32(1e9))
    return weights


def wrong_round(scene: Scene) -> Sequence[Try]:
    """Rounds that the study does not have, and things that are no round."""
    numbers = [(f"round {n}", "train", _told(scene, n)) for n in (0, -1, ROUNDS + 1, 2**62)]
    kinds = [(f"round {value!r}", "train", _told(scene, value)) for value in ("2", 2.0, True, [2])]
    return [*ask(scene, "wrong_round", *numbers), *ask(scene, "bad_message", *kinds)]


def wrong_shapes(scene: Scene) -> Sequence[Try]:
    """Weights of every shape but the right one."""
    weights = weights_of(scene)
    wrong = {
        "one number short": weights[:-1], "one number more": np.append(weights, np.float32(0)), "(P, 1)": weights[:, None],
        "a scalar": weights[:1].reshape(()), "none at all": weights[:0],
    }
    return ask(scene, "wrong_shape", *((words, "train", _told(scene, 2, array)) for words, array in wrong.items()))


def wrong_dtypes(scene: Scene) -> Sequence[Try]:
    """Numbers of another type, and weights that are no numbers: a pickle that writes a file when it is opened."""
    weights, mark = weights_of(scene), scene.stage.folder / "a pickle was opened"
    others = ("float64", "float16", "int32", "bool", "complex64", ">f4", "S4")
    pickled, archive = io.BytesIO(), io.BytesIO()
    np.save(pickled, np.array([_WritesFile(mark)], object), allow_pickle=True)
    np.savez(archive, weights=weights)
    raw = pickle.dumps(_WritesFile(mark))
    tries = [
        *ask(scene, "wrong_shape", *((f"weights as {kind}", "train", _told(scene, 2, weights.astype(kind))) for kind in others)),
        *ask(
            scene, "bad_message",
            ("a NumPy file with a pickle", "train", _told(scene, 2, _as_array(pickled.getvalue()))),
            ("a bare pickle", "train", _told(scene, 2, _as_array(raw))),
            ("a pickle said to be torch's", "train", _told(scene, 2, Array("float32", (4,), "torch.tensor", raw))),
            ("an archive of arrays", "train", _told(scene, 2, _as_array(archive.getvalue())))),
    ]  # fmt: skip
    return [*tries, Try("(was a pickle opened?)", "no", "yes" if mark.exists() else "no")]


class _WritesFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def _as_array(data: bytes) -> Array:
    return Array("float32", (4,), "numpy.ndarray", data)


def not_finite(scene: Scene) -> Sequence[Try]:
    """One number that is none."""
    questions = []
    for value in (np.nan, np.inf, -np.inf):
        weights = weights_of(scene).copy()
        weights[-1] = value
        questions.append((f"one weight {value}", "train", _told(scene, 2, weights)))
    return ask(scene, "weights_not_finite", *questions)


def unknown_types(scene: Scene) -> Sequence[Try]:
    """Messages that the hospital has no handler for."""
    kinds = ("query.run_code", "train.debug", "evaluate.scores", "query.shell", "train.__init__")
    return ask(scene, "bad_message", *((kind, kind, _told(scene, 2)) for kind in kinds))


def raw_metrics(scene: Scene) -> Sequence[Try]:
    """What the hospital knows of its patients, asked for in every way there is; its policy releases no evaluation."""
    enrolment = RecordDict({"instruction": ConfigRecord({"study": scene.stage.study.fingerprint, "want": "predictions"})})
    return [
        *ask(
            scene, "evaluation_not_released", ("evaluate", "evaluate", _told(scene, 2)),
            ("evaluate.final", "evaluate.final", _told(scene, 2))),
        *ask(
            scene, "bad_message",
            ("release=scores in the question", "evaluate", _told(scene, 2, release="scores")),
            ("predictions=True in the question", "evaluate.final", _told(scene, 2, predictions=True)),
            ("want=predictions in the enrolment", "query", enrolment),
            ("a message that names no study", "evaluate", RecordDict({"instruction": ConfigRecord({"give": "metrics"})}))),
    ]  # fmt: skip


def second_model(scene: Scene) -> Sequence[Try]:
    """The policy now releases rounded metrics: one model a round, and never a score."""
    scene.stage.set_policy(release_evaluation="coarsened", evaluation_least_patients=5)
    first = answer(scene, "evaluate.final", _told(scene, 3))
    again = answer(scene, "evaluate", _told(scene, 3))
    tries = [
        Try("evaluate round 3 in full", "metrics+site", first.text), Try("the same again", "metrics+site", again.text),
        *ask(
            scene, "replayed_round",
            ("another model in round 3", "evaluate", _told(scene, 3, weights_of(scene, 0.1))),
            ("a model of round 2", "evaluate", _told(scene, 2, weights_of(scene, 0.1))),
            ("the same model as of round 0", "evaluate.final", _told(scene, 0))),
    ]  # fmt: skip
    scene.stage.set_policy(release_evaluation="none")
    return tries


def unfit_messages(scene: Scene) -> Sequence[Try]:
    """A message that is no instruction, sent as training."""
    other = RecordDict({"instruction": ConfigRecord({"study": scene.stage.study.fingerprint})})
    twice = RecordDict(dict(_told(scene, 2)) | {"weights2": _told(scene, 2)["weights"]})
    return ask(
        scene, "bad_message", ("no weights", "train", other), ("two sets of weights", "train", twice),
        ("a card", "train", wire.write_card(wire.SiteCard("x", "y", True))),
        ("an empty record", "train", RecordDict({"instruction": ConfigRecord({})})))


ATTACKS = (
    Attack("(an honest round, for comparison)", honest_round, costs=True),
    Attack("unapproved study", unapproved_study), Attack("weaker noise", weaker_noise), Attack("more epochs", more_epochs),
    Attack("replayed round", replayed_round), Attack("wrong round", wrong_round), Attack("wrong shapes", wrong_shapes),
    Attack("wrong dtype, pickles", wrong_dtypes), Attack("NaN and infinite weights", not_finite),
    Attack("unknown message type", unknown_types), Attack("not an instruction", unfit_messages),
    Attack("raw metrics, scores, predictions", raw_metrics),
    Attack("two models evaluated in one round", second_model, may_write=(f"{VICTIM}/studies/",)),
)  # fmt: skip
