import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fedimaging.errors import RunError
from fedimaging.federated import wire
from fedimaging.federated.flower_internals import take_server_identity
from fedimaging.federated.site_runner import Joining, Work
from fedimaging.files import held
from fedimaging.runs import site_run
from fedimaging.site import audit_log
from fedimaging.site.folder import SiteFolder
from fedimaging.site.init import make_site_folder
from fedimaging.site.site import TrainInstruction


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return make_site_folder(tmp_path / "north", name="north", server="federation.example.org:8443")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_node_is_what_its_folder_says_and_ends_with_a_signal(folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Joining] = []

    def run(joining: Joining, work: Work, stop: threading.Event) -> None:
        seen.append(joining)
        work.refused("message_too_large")
        assert work.largest_message() == 2**20  # nothing is approved, so no weights belong here
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()

    monkeypatch.setattr(site_run, "run_site", run)
    site_run.run_hospital(folder, lambda text: None)
    assert seen == [Joining("north", "federation.example.org:8443", folder.ca_file, folder.key_file)]
    events = audit_log.read(folder.audit_file)
    assert [event["event"] for event in events] == ["created", "node_started", "refused", "node_stopped"]


def test_a_message_opens_the_study_that_it_names_and_no_other(folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    take_server_identity(1)
    codes: list[str | None] = []

    def run(joining: Joining, work: Work, stop: threading.Event) -> None:
        context = Context(1, 2, node_config={}, state=RecordDict(), run_config={})
        for study in ("a" * 64, "../../etc", ""):
            instruction = TrainInstruction(study, 1, np.zeros(2, np.float32))
            for kind in ("train", "evaluate", "evaluate.final"):
                reply = work.app(message=Message(wire.write_instruction(instruction), 2, kind), context=context)
                codes.append(wire.refusal_of(reply.content))
        codes.append(wire.refusal_of(work.app(message=Message(RecordDict(), 2, "train"), context=context).content))

    monkeypatch.setattr(site_run, "run_site", run)
    site_run.run_hospital(folder, lambda text: None)
    assert codes == ["study_not_approved"] * 9 + ["bad_message"]


def test_one_folder_is_run_by_one_process(folder: SiteFolder) -> None:
    with held(folder.run_lock), pytest.raises(RunError, match="run by another process already"):
        site_run.run_hospital(folder, lambda text: None)
