"""An interrupted round goes on with the same bits, every step that ran is charged, and one update leaves."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedimaging.errors import BudgetExceeded, SiteRefusal
from fedimaging.privacy.budget import Budget
from fedimaging.privacy.ledger import Ledger
from fedimaging.runs import hospitals
from fedimaging.site import audit_log, checkpoint
from fedimaging.site.hospital import open_hospital_site
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site, TrainInstruction
from fedimaging.study.load import load
from fedimaging.study.schema import Study
from fedimaging.training import local

from .making import hospital, pictures, study_file

STEPS = 6
Make = Callable[..., Site]


@pytest.fixture(autouse=True)
def _at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_SHARE", 1e9)


@pytest.fixture
def make(tiny_study: Callable[..., Study], tmp_path: Path) -> Make:
    """A hospital in a folder of that name, six steps a round."""

    def made(name: str, *overrides: str) -> Site:
        study = tiny_study("privacy.engine=loop", "training.local_epochs=null", f"training.local_steps={STEPS}",
                           "training.optimizer=adam", "policy.budget_epsilon=100", "federation.local_parameters=head", *overrides)
        hospitals.make_federation(study, hospitals.load_data(study), tmp_path / name, "cpu").save()
        return open_simulated_site(tmp_path / name, 0)

    return made


def ask(site: Site, round: int = 1, shift: float = 0.0) -> TrainInstruction:
    return TrainInstruction(site.fingerprint, round, site.bench.initial[site.bench.shared] + np.float32(shift))


def after(steps: int) -> Callable[[], bool]:
    """Says stop after so many steps."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps


def stopped(site: Site, steps: int, **changes: object) -> None:
    """The round, stopped after so many steps as by SIGTERM."""
    with pytest.raises(SiteRefusal) as caught:
        replace(site, stop=after(steps), **changes).train(ask(site))
    assert caught.value.code == "stopping"


def charged(site: Site) -> int:
    return sum(charge.steps for charge in Ledger(site.folder / "ledger.sqlite").charges())


@pytest.mark.parametrize("privacy", [(), ("privacy=null",)], ids=["private", "plain"])
def test_a_round_stopped_twice_ends_with_the_bits_of_an_undisturbed_one(privacy: tuple[str, ...], make: Make) -> None:
    calm, site = make("calm", *privacy), make("stopped", *privacy)
    expected = calm.train(ask(calm)).delta
    stopped(site, 2)
    stopped(site, 3)
    np.testing.assert_array_equal(site.train(ask(site)).delta, expected)
    assert [e["event"] for e in audit_log.read(site.folder / "audit.jsonl")] == ["trained", "released"]
    assert audit_log.read(site.folder / "audit.jsonl")[0]["resumed"] is True
    assert not (site.folder / "progress.npz").exists()
    if not privacy:
        assert charged(calm) == STEPS
        assert charged(site) == STEPS + 2  # the step that may have been under way at each stop
        assert [row.kind for row in Ledger(site.folder / "ledger.sqlite").rows()].count("released") == 1


def crashed(site: Site, monkeypatch: pytest.MonkeyPatch, *, kept: int, finished: int) -> None:
    """The round died in the step after `finished`, its last checkpoint that after `kept`."""
    keep, step, ran = checkpoint.Checkpoint._keep, local.private_gradient, [0]

    def keep_few(self: checkpoint.Checkpoint, *args: object) -> None:
        if args[-1].steps <= kept:  # type: ignore[attr-defined]
            keep(self, *args)  # type: ignore[arg-type]

    def dies(*args: object, **named: object) -> object:
        ran[0] += 1
        if ran[0] > finished:
            raise MemoryError
        return step(*args, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "_keep", keep_few)
        patch.setattr(local, "private_gradient", dies)
        with pytest.raises(MemoryError):
            site.train(ask(site))


def test_steps_that_run_again_are_charged_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make("crashed")
    crashed(site, monkeypatch, kept=2, finished=4)
    assert charged(site) == STEPS
    site.train(ask(site))
    assert charged(site) == STEPS + 3  # the third, the fourth, and the fifth that was under way


def test_where_nobody_knows_how_many_ran_all_that_may_have_are_charged(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make("crashed")
    crashed(site, monkeypatch, kept=2, finished=4)
    (site.folder / "steps.count").unlink()  # as a power cut may leave it
    site.train(ask(site))
    assert charged(site) == STEPS + 4


@pytest.mark.parametrize(
    "harm", [lambda f: f.unlink(), lambda f: f.write_bytes(b""), lambda f: f.write_bytes(f.read_bytes()[:500])]
)
def test_without_a_readable_checkpoint_the_round_starts_anew_and_is_charged_twice(
    harm: Callable[[Path], object], make: Make
) -> None:
    calm, site = make("calm"), make("stopped")
    stopped(site, 2)
    harm(site.folder / "progress.npz")
    np.testing.assert_array_equal(site.train(ask(site)).delta, calm.train(ask(calm)).delta)
    assert charged(site) == 2 * STEPS
    kinds = [row.kind for row in Ledger(site.folder / "ledger.sqlite").rows()]
    assert kinds == ["created", "reserved", "given_up", "reserved", "settled", "released"]


def test_other_weights_or_another_round_do_not_go_on_with_it(make: Make) -> None:
    for name, instruction in (("weights", {"shift": 1e-3}), ("round", {"round": 2})):
        site = make(name)
        stopped(site, 2)
        site.train(ask(site, **instruction))  # type: ignore[arg-type]
        assert charged(site) == 2 * STEPS
        assert audit_log.read(site.folder / "audit.jsonl")[0]["resumed"] is False


def test_one_reservation_never_releases_two_updates(make: Make) -> None:
    """Somebody puts the checkpoint of a released round back and loses the release."""
    site = make("restored")
    stopped(site, 2)
    shutil.copy(site.folder / "progress.npz", site.folder / "copy")
    site.train(ask(site))
    shutil.copy(site.folder / "copy", site.folder / "progress.npz")
    (site.folder / "release.npz").unlink()
    site.train(ask(site))
    assert charged(site) == 2 * STEPS + 1
    assert audit_log.read(site.folder / "audit.jsonl")[-2]["resumed"] is False


def test_a_round_that_may_not_be_charged_for_more_is_refused_and_keeps_its_checkpoint(make: Make) -> None:
    site = make("poor")
    stopped(site, 2)
    with pytest.raises(BudgetExceeded):
        replace(site, budget=Budget(0.5, 1e-3)).train(ask(site))
    assert charged(site) == STEPS
    assert (site.folder / "progress.npz").exists()


def test_a_short_round_writes_no_checkpoint(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_LEAST_SECONDS", 3600.0)
    site = make("short")
    monkeypatch.setattr(checkpoint.Checkpoint, "_keep", lambda *_: pytest.fail("kept"))
    site.train(ask(site))
    assert not (site.folder / "steps.count").exists()


def test_a_released_round_is_sent_again_as_it_was(make: Make) -> None:
    site = make("again")
    first, second = (site.train(ask(site)).delta for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert charged(site) == STEPS
    released = [e for e in audit_log.read(site.folder / "audit.jsonl") if e["event"] == "released"]
    assert released[0]["epsilon"] == released[1]["epsilon"] > 0


def test_every_budget_must_hold(make: Make) -> None:
    site = replace(make("two"), more_budgets=(Budget(100.0, 1e-3, 366), Budget(0.01, 1e-3, 1)))
    with pytest.raises(BudgetExceeded, match="any 1 days"):
        site.train(ask(site))
    assert charged(site) == 0


KILLED = """
import sys
import numpy as np
from pathlib import Path
from fedimaging.site import checkpoint
from fedimaging.site.folder import SiteFolder
from fedimaging.site.hospital import open_hospital_site
from fedimaging.site.site import TrainInstruction
checkpoint._LEAST_SECONDS = 0.05
site = open_hospital_site(SiteFolder.open(Path(sys.argv[1])), sys.argv[2])
site.train(TrainInstruction(site.fingerprint, 1, site.bench.initial))
"""


@pytest.mark.slow
def test_a_hospital_killed_in_a_round_goes_on_and_is_charged_only_for_what_ran_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # checkpoints at their own pace
    steps = 400
    path = study_file(tmp_path / "study.yaml", training={"local_steps": steps}, privacy={"noise_multiplier": 20.0})
    folder = hospital(tmp_path / "north", pictures(tmp_path / "data"), path, maximum_epochs=None)
    fingerprint = load(path).fingerprint
    state = folder.state_folder(fingerprint)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder.path), fingerprint])
    while not (state / "steps.count").exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.2)
    process.kill()
    process.wait()
    assert sum(charge.steps for charge in folder.ledger().charges()) == steps
    with np.load(state / "progress.npz") as kept:
        before = int(kept["steps"])
    assert 0 < before < steps
    site = open_hospital_site(folder, fingerprint)
    assert site.noise_for(1).name == "secure"
    update = site.train(TrainInstruction(fingerprint, 1, site.bench.initial))
    again = sum(charge.steps for charge in folder.ledger().charges()) - steps
    assert 1 <= again < steps - before
    assert audit_log.read(folder.audit_file)[-2]["resumed"] is True
    np.testing.assert_array_equal(site.train(TrainInstruction(fingerprint, 1, site.bench.initial)).delta, update.delta)


@pytest.mark.parametrize(("simulated", "first"), [(False, 1), (True, 15)])
def test_a_simulation_keeps_its_progress_less_often(
    simulated: bool, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_LEAST_SECONDS", 1.0)
    seconds = iter(range(10**6))  # a step takes a second
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    progress = local.Progress(1, np.zeros(3, np.float32), {})
    after_step = checkpoint.Checkpoint(tmp_path, simulated=simulated).watch(
        1, np.zeros(3, np.float32), None, lambda: False, None)
    steps = 0
    while not (tmp_path / "progress.npz").exists():
        steps += 1
        after_step(steps, lambda: progress)
    assert steps == first
