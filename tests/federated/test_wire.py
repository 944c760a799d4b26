import io
import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedimaging.errors import SiteRefusal
from fedimaging.federated import wire
from fedimaging.results import SiteCalibration, SiteEvaluation, SiteUpdate
from fedimaging.site.site import TrainInstruction

WEIGHTS = np.arange(4, dtype=np.float32)


def _instruction() -> RecordDict:
    return wire.write_instruction(TrainInstruction("abc", 3, WEIGHTS))


def test_an_instruction_is_a_study_a_round_and_weights() -> None:
    content = _instruction()
    assert {name: set(record) for name, record in content.items()} == {"instruction": {"study", "round"}, "weights": {"weights"}}
    read = wire.read_instruction(content)
    assert (read.study, read.round) == ("abc", 3)
    np.testing.assert_array_equal(read.weights, WEIGHTS)


def _with(**changes: object) -> RecordDict:
    content = _instruction()
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value  # type: ignore[assignment]
    return content


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        _with(weights=None),
        _with(extra=ConfigRecord({"noise_multiplier": 0.0})),
        _with(instruction=ConfigRecord({"study": "abc", "round": 3, "epochs": 100})),
        _with(instruction=ConfigRecord({"study": "abc", "round": "3"})),
        _with(instruction=ConfigRecord({"study": b"abc", "round": 3})),
        _with(instruction=ConfigRecord({"study": "abc", "round": True})),
        _with(weights=ConfigRecord({"weights": 1})),
        _with(weights=ArrayRecord({"weights": Array(WEIGHTS), "more": Array(WEIGHTS)})),
        _with(weights=ArrayRecord({"weights": Array("float32", (4,), "numpy.ndarray", b"not an array")})),
        _with(weights=ArrayRecord({"weights": Array("float32", (4,), "pickle", b"x")})),
    ],
)
def test_anything_else_is_refused(content: RecordDict) -> None:
    with pytest.raises(SiteRefusal) as caught:
        wire.read_instruction(content)
    assert caught.value.code == "bad_message"


def test_bytes_that_are_no_array_are_refused() -> None:
    heads = [b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % claimed for claimed in (10**10, 10**17, 10**25)]
    claims = [b"\x93NUMPY\x01\x00" + bytes([len(head), 0]) + head for head in heads]
    archive = io.BytesIO()
    np.savez(archive, weights=WEIGHTS)
    for data in (*claims, archive.getvalue(), b"", pickle.dumps(WEIGHTS)):
        record = wire.write_instruction(TrainInstruction("x", 1, WEIGHTS))
        record["weights"] = ArrayRecord({"weights": Array("float32", (4,), "numpy.ndarray", data)})
        with pytest.raises(SiteRefusal) as caught:
            wire.read_instruction(record)
        assert caught.value.code == "bad_message"


def _raw(head: bytes, body: bytes = np.zeros(6, np.float32).tobytes(), version: bytes = b"\x01\x00") -> Array:
    length = len(head).to_bytes(2 if version[0] == 1 else 4, "little")
    return Array("float32", (6,), "numpy.ndarray", b"\x93NUMPY" + version + length + head + body)


_HEAD = b"{'descr': '<f4', 'fortran_order': %s, 'shape': %s, }"


def test_weights_are_read_where_they_lie_and_cannot_be_written_to() -> None:
    array = _raw(_HEAD % (b"False", b"(6,)"))
    content = _with(weights=ArrayRecord({"weights": array}))
    weights = wire.read_instruction(content).weights
    assert weights.shape == (6,)
    assert not weights.flags.writeable
    assert weights.base is not None
    assert np.shares_memory(weights, np.frombuffer(array.data, np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        _raw(_HEAD % (b"True", b"(2, 3)")),
        _raw(_HEAD % (b"False", b"(-1,)")),
        _raw(_HEAD % (b"False", b"(-2, -3)")),
        _raw(_HEAD % (b"False", b"(5,)")),
        _raw(_HEAD % (b"False", b"(7,)")),
        _raw(_HEAD % (b"False", b"(6,)"), version=b"\x02\x00"),
    ],
    ids=["column by column", "negative", "twice negative", "too many bytes", "too few bytes", "another version"],
)
def test_arrays_that_are_not_what_numpy_saves_are_refused(array: Array) -> None:
    with pytest.raises(SiteRefusal) as caught:
        wire.read_instruction(_with(weights=ArrayRecord({"weights": array})))
    assert caught.value.code == "bad_message"


def test_an_update_carries_no_counts_losses_or_metrics() -> None:
    content = wire.write_update(SiteUpdate("h1", 3, WEIGHTS))
    assert {name: set(record) for name, record in content.items()} == {"site": {"site", "round"}, "update": {"update"}}


@pytest.mark.parametrize(
    ("update", "code"),
    [
        (SiteUpdate("h1", 2, WEIGHTS), "wrong_round"),
        (SiteUpdate("h1", 3, WEIGHTS[:3]), "wrong_shape"),
        (SiteUpdate("h1", 3, WEIGHTS.astype(np.float64)), "wrong_shape"),
        (SiteUpdate("h1", 3, WEIGHTS[None]), "wrong_shape"),
        (SiteUpdate("h1", 3, WEIGHTS * np.float32(np.nan)), "update_not_finite"),
    ],
)
def test_a_lying_hospitals_update_is_refused_with_a_code(update: SiteUpdate, code: str) -> None:
    with pytest.raises(SiteRefusal) as caught:
        wire.read_update(wire.write_update(update), round=3, size=4)
    assert caught.value.code == code


def test_evaluation_round_trip_with_scores() -> None:
    sent = SiteEvaluation("h1", 3, 0.5, 7, {"auroc": 0.75}, {"scores": WEIGHTS})
    read = wire.read_evaluation(wire.write_evaluation(sent), round=3)
    assert (read.site, read.loss, read.n_patients, dict(read.metrics)) == ("h1", 0.5, 7, {"auroc": 0.75})
    np.testing.assert_array_equal(read.predictions["scores"], WEIGHTS)
    assert (read.release, read.totals) == ("metrics", {})


def test_noised_totals_travel_under_their_name() -> None:
    sent = SiteEvaluation("h1", 3, float("nan"), 7, {}, release="noised", totals={"noise_std": np.array(2.0, np.float32)})
    read = wire.read_evaluation(wire.write_evaluation(sent), round=3)
    assert (read.release, read.predictions, read.totals["noise_std"].shape) == ("noised", {}, ())


def test_an_evaluation_of_no_known_kind_is_refused() -> None:
    with pytest.raises(SiteRefusal):
        wire.read_evaluation(wire.write_evaluation(SiteEvaluation("h1", 3, 0.5, 7, {}, release="everything")), round=3)


def test_evaluation_without_numbers_is_refused() -> None:
    content = wire.write_evaluation(SiteEvaluation("h1", 3, 0.5, 7, {}))
    content["metrics"] = MetricRecord({"loss": [1.0, 2.0], "n_patients": 3})
    with pytest.raises(SiteRefusal):
        wire.read_evaluation(content, round=3)


def test_only_known_codes_leave_a_hospital() -> None:
    assert wire.refusal_of(wire.write_refusal("h1", "patient 1234 in /data/x.png")) == "error"
    assert wire.refusal_of(wire.write_refusal("h1", "budget_exceeded")) == "budget_exceeded"
    assert wire.refusal_of(wire.write_update(SiteUpdate("h1", 1, WEIGHTS))) is None


def test_cards() -> None:
    card = wire.SiteCard("h1", "model", True)
    assert wire.read_card(wire.write_card(card)) == card
    assert wire.read_enrolment(wire.write_enrolment("abc")) == "abc"
    with pytest.raises(SiteRefusal):
        wire.read_enrolment(_instruction())


SUMS = np.arange(9, dtype=np.float32)


def test_a_calibration_is_sums_and_the_size_of_their_noise() -> None:
    content = wire.write_calibration(SiteCalibration("h1", 3, SUMS, 12.0))
    assert {name: set(record) for name, record in content.items()} == {
        "site": {"site", "round"}, "calibration": {"sums", "noise_std"},
    }
    read = wire.read_calibration(content, round=3)
    assert (read.site, read.round, read.sums.tolist(), read.noise_std) == ("h1", 3, SUMS.tolist(), 12.0)


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (SiteCalibration("h1", 2, SUMS, 0.0), "wrong_round"), (SiteCalibration("h1", 3, SUMS[:-1], 0.0), "bad_message"),
        (SiteCalibration("h1", 3, SUMS.astype(np.float64), 0.0), "bad_message"),
        (SiteCalibration("h1", 3, SUMS * np.float32(np.nan), 0.0), "bad_message"),
        (SiteCalibration("h1", 3, SUMS, -1.0), "bad_message"), (SiteCalibration("h1", 3, SUMS, float("inf")), "bad_message"),
    ],
)
def test_a_lying_hospitals_calibration_is_refused_with_a_code(lie: SiteCalibration, code: str) -> None:
    with pytest.raises(SiteRefusal) as caught:
        wire.read_calibration(wire.write_calibration(lie), round=3)
    assert caught.value.code == code
