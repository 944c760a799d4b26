import threading

import pytest

from fedimaging.errors import LinkDown, LinkRefused
from fedimaging.federated.timing import Heartbeat, pace


def test_the_longer_the_wait_the_rarer_the_question() -> None:
    assert pace(0.0, least=0.1, most=3.0) == 0.1
    assert pace(10.0, least=0.1, most=3.0) == 0.5
    assert pace(1000.0, least=0.1, most=3.0) == 3.0
    assert pace(10.0, least=1.0, most=60.0, share=0.25) == 2.5


def test_a_heart_bears_silence_and_stops_when_it_is_not_known() -> None:
    answers = iter([True, LinkDown("away"), LinkRefused(500, "database is locked"), False])
    beats = []

    def beat() -> bool:
        beats.append(1)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Heartbeat(beat, 0.001) as heart:
        assert heart.lost.wait(10)
    assert len(beats) == 4


@pytest.mark.parametrize("end", ["refused", "left"])
def test_a_heart_ends_with_a_refusal_or_with_its_block(end: str) -> None:
    beaten = threading.Event()

    def beat() -> bool:
        beaten.set()
        if end == "refused":
            raise LinkRefused(401, "who are you")
        return True

    with Heartbeat(beat, 0.001) as heart:
        assert beaten.wait(10)
        assert heart.lost.wait(10) if end == "refused" else not heart.lost.is_set()
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
