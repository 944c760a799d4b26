"""A whole federation on one machine: server and three hospitals, a process each, over TLS with registered keys. Hospitals and
server are killed, strangers knock, another app is sent; the weights are those of a simulation."""

import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import Message
from safetensors.numpy import load_file

from fedimaging.errors import LinkRefused, LinkUntrusted
from fedimaging.federated import wire
from fedimaging.federated.flower_http import ControlLine, FleetLine, RunLine, acquire_run
from fedimaging.keys import make_key, read_private
from fedimaging.privacy.ledger import Ledger
from fedimaging.runs.certificates import make_authority
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.server_folder import ServerFolder, ServerSettings
from fedimaging.runs.simulate import simulate
from fedimaging.site import audit_log
from fedimaging.site.site import TrainInstruction
from fedimaging.study.load import load
from tests.site.making import SITES, hospital, pictures, study_file

pytestmark = pytest.mark.slow
ROUNDS, STEPS = 6, 30
_CLI = [sys.executable, "-m", "fedimaging.cli"]


class Stage:
    """The processes of one federation, by name; every one is ended when the test ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.server = ServerFolder.create(folder / "server", ServerSettings(host="127.0.0.1", port=self.port, listen="127.0.0.1"))
        data = pictures(folder / "data")
        rows = (data / "manifest.csv").read_text().splitlines()
        for number in (6, 7, 8, 15, 16, 17):  # two validation patients at each hospital
            rows[number + 1] = rows[number + 1].replace(",train", ",validation")
        (data / "manifest.csv").write_text("\n".join(rows) + "\n")
        self.study = study_file(
            folder / "study.yaml", federation={"rounds": ROUNDS, "minimum_replies": 2}, training={"local_steps": STEPS},
            evaluation={"every": 3, "resamples": 100, "calibration": "temperature"}, privacy={"noise_multiplier": 6.0},
        )  # fmt: skip
        self.sites = {name: self._site(name, data) for name in SITES}
        self.data = data

    def _site(self, name: str, data: Path) -> Path:
        made = hospital(
            self.folder / name, data, self.study, name=name, allow_simulated_noise=True, release_evaluation="metrics",
            maximum_epochs=100, release_calibration="none" if name == "west" else "noised")
        settings = yaml.safe_load(made.settings_file.read_text())
        made.settings_file.write_text(yaml.safe_dump(settings | {"server": f"127.0.0.1:{self.port}"}))
        shutil.copy(self.server.ca, made.ca_file)
        self.server.add_site(name, made.public_key_file, None)
        return made.path

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen([*_CLI, *command], stdout=log, stderr=log, env=os.environ)

    def start_server(self) -> None:
        self.start("start", "server", "start", str(self.server.path))

    def start_site(self, name: str) -> None:
        self.start(name, "site", "run", str(self.sites[name]))

    def start_run(self, *options: str) -> None:
        self.start("run", "server", "run", str(self.server.path), str(self.study), *options)

    def kill(self, *names: str) -> None:
        for name in names:
            self.running[name].kill()
        for name in names:
            self.running[name].wait(20)

    def until(self, done: Callable[[], bool], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.logs()
            assert self.running["run"].poll() in (None, 0), self.logs()
            time.sleep(0.05)

    def rounds(self) -> int:
        found = list(self.server.path.glob("runs/*/rounds.jsonl"))
        return len({json.loads(line)["round"] for line in found[0].read_text().splitlines()}) if found else 0

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    built = Stage(tmp_path)
    try:
        yield built
    finally:
        built.end()


def test_a_federation_of_real_processes(stage: Stage) -> None:
    stage.start_server()
    for name in SITES:
        stage.start_site(name)
    stage.start_run()
    stage.until(lambda: stage.rounds() >= 1)

    stage.kill("north", "run")  # a hospital and the run, in the middle of a round
    stage.start_site("north")
    stage.start_run("--resume")
    _strangers_stay_outside(stage)
    stage.until(lambda: stage.rounds() >= 3)
    stage.kill("start")  # the server itself
    stage.start_server()
    stage.running["south"].send_signal(signal.SIGTERM)  # and a hospital that leaves politely
    assert stage.running["south"].wait(30) == 0
    stage.start_site("south")
    assert stage.running["run"].wait(150) == 0, stage.logs()

    _weights_are_the_simulations(stage)
    _books_are_in_order(stage)
    _another_app_is_not_run(stage)


def _strangers_stay_outside(stage: Stage) -> None:
    """From outside only the fleet's calls answer, with the authority's certificate, to registered keys."""
    context = ssl.create_default_context(cafile=str(stage.server.ca))
    for path, status in (("/health", 404), ("/v1/control/start-run", 404), ("/v1/runtime/acquire-task", 404),
                         ("/v1/fleet/get-fab", 404), ("/v1/fleet/pull-messages", 415)):  # fmt: skip
        request = urllib.request.Request(f"https://127.0.0.1:{stage.port}{path}", data=b"x", method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, context=context, timeout=20)
        assert refused.value.code == status
        refused.value.close()
    make_authority(stage.folder / "other.crt", stage.folder / "other.key")
    make_key(stage.folder / "stranger.key", stage.folder / "stranger.pub")
    key = read_private(stage.folder / "stranger.key")
    for authority, error in ((stage.folder / "other.crt", LinkUntrusted), (stage.server.ca, LinkRefused)):
        line = FleetLine(f"127.0.0.1:{stage.port}", authority, key)
        with pytest.raises(error):
            line.activate()
        line.close()


def _weights_are_the_simulations(stage: Stage) -> None:
    out, study = stage.folder / "simulated", load(stage.study, [f"data.root={stage.data}"])
    with LiveView(ROUNDS, quiet=True) as view:
        simulate(study, out, Options(report=False, workers=1), view)
    (run,) = stage.server.path.glob("runs/*")
    real, simulated = load_file(run / "weights.safetensors"), load_file(out / "weights.safetensors")
    for name, array in simulated.items():
        np.testing.assert_allclose(real[name], array, rtol=0, atol=1e-5)
    report = json.loads((run / "report.json").read_text())
    assert [row["round"] for row in report["rounds"]] == list(range(1, ROUNDS + 1))
    assert all(set(row["sites"]) == set(SITES) for row in report["rounds"])
    assert set(report["sites"]) == set(SITES)
    assert report["test"]
    calibrated = report["calibration"]["tempering"]
    assert set(calibrated["charge"]["sites"]) == {"north", "south"}
    assert calibrated["refused"] == {"west": "calibration_not_released"}
    assert "accounted for at the hospitals" in (run / "report.html").read_text()


def _books_are_in_order(stage: Stage) -> None:
    for path in stage.sites.values():
        events = [event["event"] for event in audit_log.read(path / "audit.jsonl")]
        assert events.count("released") >= ROUNDS
        charges = Ledger(path / "ledger.sqlite", path / "ledger.head").charges()
        assert sum(charge.steps for charge in charges) >= STEPS * ROUNDS
        assert events.count("calibrated") == sum(charge.sample_rate == 1.0 for charge in charges) == (path.name != "west")
    assert "node_stopped" in [event["event"] for event in audit_log.read(stage.sites["south"] / "audit.jsonl")]
    events = [event["event"] for event in audit_log.read(stage.server.path / "audit.jsonl")]
    assert events.count("round") == ROUNDS
    assert events[-1] == "run_finished"


def _another_app_is_not_run(stage: Stage) -> None:
    """A run that carries code, and a message in its name: the code stays where it is, the message is refused by its study."""
    mark = stage.folder / "the code of the server ran"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("evil/__init__.py", f"open({str(mark)!r}, 'w')")
        archive.writestr("pyproject.toml", (
            '[project]\nname = "evil"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "x"\n[tool.flwr.app.components]\n'
            'serverapp = "evil:app"\nclientapp = "evil:app"\n[tool.flwr.app.config]\n'))
    control = ControlLine(stage.server.socket)
    run_id = control.start_run(packed.getvalue(), sha256(packed.getvalue()).hexdigest())
    claimed = acquire_run(stage.server.socket, stage.server.secret)
    assert claimed is not None
    line = RunLine(stage.server.socket, claimed[1])
    line.begin()
    node = line.nodes()[0].node_id
    weights = np.zeros(4, np.float32)
    questions = [
        Message(wire.write_instruction(TrainInstruction("e" * 64, 1, weights)), node, "train", ttl=60.0),
        Message(wire.write_instruction(TrainInstruction(load(stage.study).fingerprint, 1, weights)), node, "train", ttl=60.0),
        Message(wire.write_enrolment(load(stage.study).fingerprint), node, "query.run_code", ttl=60.0),
    ]  # fmt: skip
    waiting, codes = line.push(questions), dict[str, str | None]()
    end = time.monotonic() + 60
    while len(codes) < len(waiting):
        assert time.monotonic() < end, stage.logs()
        for reply in line.replies([one for one in waiting if one not in codes]):
            codes[reply.head.metadata.reply_to_message_id] = wire.refusal_of(reply.head.content)
        time.sleep(0.1)
    assert [codes[one] for one in waiting] == ["study_not_approved", "wrong_shape", "bad_message"]
    control.stop_run(run_id)
    line.close()
    control.close()
    assert not mark.exists()
    assert not list(stage.folder.rglob("evil*"))
