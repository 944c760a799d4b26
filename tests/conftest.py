"""What many tests need: the real data where they are, a private image store, and a study that trains in a blink."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
# Tiny networks: threads cost more than they give, the more so beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell, which every process begun here would inherit; some tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images; the test is skipped where it is absent."""
    path = Path(os.environ.get("FEDIMAGING_SHARED_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not path.is_dir():
        pytest.skip("the real images are not here (FEDIMAGING_SHARED_DATA)")
    return path


@pytest.fixture(autouse=True, scope="session")
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["FEDIMAGING_CACHE"] = str(tmp_path_factory.mktemp("store"))


TINY = (
    "data.image_size=[16,16]",
    "data.phantoms.patients=36",
    "data.phantoms.hospitals=3",
    "data.phantoms.scans_per_patient=[1,2]",
    "model.name=small_cnn",
    "model.options={width: 4}",
    "training.batch_size=8",
    "training.local_steps=null",
    "training.local_epochs=1",
    "training.learning_rate=0.5",
    "federation.algorithm=fedavg",
    "federation.average_last=1",
    "federation.rounds=2",
    "evaluation.every=1",
    "evaluation.resamples=100",
    "evaluation.examples=2",
    "runtime.workers=1",
    "runtime.device=cpu",
)


@pytest.fixture
def tiny_study() -> Callable[..., "object"]:
    """`tiny_study("federation.rounds=3", ...)`: the quickstart study at 16 pixels, 3 hospitals, 36 patients."""
    from fedimaging.study.load import load

    return lambda *overrides: load(ROOT / "configs" / "quickstart.yaml", [*TINY, *overrides])
