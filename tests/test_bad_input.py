"""Every bad input through the real command line: one clear line, exit code 2, and nothing half-written."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedimaging import cli
from fedimaging.runs.run_dir import RunDir

ROOT = Path(__file__).parents[1]
PRIVATE = {"target_epsilon": 8.0, "delta": 1e-3, "engine": "vmap"}
Rows = list[dict[str, str]]


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Desk:
    """A folder with twelve patients of two hospitals, a study of them, and the command line."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    rows: Rows

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def write(self, **blocks: Any) -> Path:
        """Write manifest and study; `blocks` replaces top-level keys of the study."""
        with (self.folder / "scans.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        data = {"source": "manifest", "path": "scans.csv", "root": str(self.folder), "image_size": [16, 16]}
        study = {
            "name": "tiny", "data": data, "task": {"kind": "binary", "label": "label"},
            "hospitals": {"by": "column"}, "model": {"name": "small_cnn", "options": {"width": 4}},
            "training": {"learning_rate": 0.1, "batch_size": 4, "local_epochs": 1}, "privacy": None,
            "federation": {"rounds": 2}, "evaluation": {"resamples": 100}, "runtime": {"workers": 1, "device": "cpu"},
        }
        (self.folder / "study.yaml").write_text(yaml.safe_dump(study | blocks), encoding="utf-8")
        return self.folder / "study.yaml"

    def type(self, *words: object) -> Ended:
        """What a user gets who types `fedimaging WORDS`."""
        self.monkeypatch.setattr(sys, "argv", ["fedimaging", *map(str, words)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = self.capsys.readouterr()
        return Ended(int(end.value.code or 0), told.out, told.err)

    def simulate(self, *words: object, **blocks: Any) -> Ended:
        return self.type("simulate", self.write(**blocks), "--out", self.out, "--no-report", *words)

    def refused(self, *words: object, **blocks: Any) -> str:
        """The one error of a simulation that must not start; it leaves neither run folder nor half a store."""
        error = one_error(self.simulate(*words, **blocks))
        assert not self.out.exists()
        assert not list(self.folder.rglob("*.part*"))
        return error

    def interrupted(self, **blocks: Any) -> None:
        """A run of three rounds that Ctrl-C ended after the second."""
        save = RunDir.save_state

        def save_then_stop(folder: RunDir, state: Any) -> None:
            save(folder, state)
            if state.round == 2:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunDir, "save_state", save_then_stop)
            ended = self.simulate(federation={"rounds": 3}, **blocks)
        assert ended.code == 130
        assert ended.err.splitlines()[-1].startswith("interrupted; ")

    def resumed(self, **blocks: Any) -> Ended:
        return self.simulate("--resume", federation={"rounds": 3}, **blocks)


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("FEDIMAGING_CACHE", str(tmp_path / "store"))
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(np.pad(np.ones((4, 4), np.uint8), 6)).save(tmp_path / f"mask{i}.png")
        split = "test" if i >= 8 else "train"
        rows.append({"image": f"{i}.png", "mask": f"mask{i}.png", "patient_id": f"p{i}", "label": str(i // 2 % 2),
                     "site": "AB"[i % 2], "split": split})
    return Desk(tmp_path, capsys, monkeypatch, rows)


def one_error(ended: Ended) -> str:
    """The text of the only error, which is the last thing said."""
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    lines = ended.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], ended.err
    return lines[-1].removeprefix("error: ")


def warnings_in(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith("warning: ")]


def nan_volume(desk: Desk) -> None:
    import nibabel

    volume = np.zeros((16, 16, 1), np.float32)
    volume[3, 4, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), desk.folder / "nan.nii")
    desk.rows[3]["image"] = "nan.nii"


def nobody_trains_at_c(desk: Desk) -> None:
    desk.rows[11]["site"] = "C"


BAD_DATA: dict[str, tuple[Callable[[Desk], object], str]] = {
    "missing image": (lambda d: (d.folder / "3.png").unlink(), "scans.csv line 5: image .*3.png is missing"),
    "missing manifest": (lambda d: d.monkeypatch.setattr(Desk, "write", _study_without_manifest), "scans.csv is missing"),
    "unreadable image": (lambda d: (d.folder / "3.png").write_bytes(b"no picture"), "line 5: .*3.png cannot be read as picture"),
    "cut image": (lambda d: os.truncate(d.folder / "3.png", 90), "line 5: .*3.png cannot be read as picture"),
    "NaN pixels": (nan_volume, "line 5: .*nan.nii has 1 pixels that are NaN or infinite, of 256"),
    "label out of range": (lambda d: d.rows[3].update(label="7"), "line 5: label='7' is out of range; allowed are 0 to 1"),
    "label of 5000 digits": (lambda d: d.rows[3].update(label="9" * 5000), "line 5: label='9{40}' is not a whole number"),
    "label in words": (lambda d: d.rows[3].update(label="yes"), "line 5: label='yes' is not a whole number"),
    "patient in two hospitals": (lambda d: d.rows[3].update(patient_id="p2"), "patient 'p2' is at two hospitals, 'A' and 'B'"),
    "patient in two splits": (lambda d: d.rows[10].update(patient_id="p0"), "patient 'p0' has split 'test' here but 'train'"),
    "blank patient": (lambda d: d.rows[3].update(patient_id=" "), "line 5: patient_id is blank"),
    "empty hospital": (nobody_trains_at_c, "hospital 'C' has no training patient; name it in hospitals.held_out"),
    "hospital of many lines": (lambda d: [r.update(site="a\nb") for r in d.rows], "has line breaks in its name"),
    "endless device": (lambda d: d.rows[3].update(image="/dev/zero"), "/dev/zero is no ordinary file"),
    "name too long": (lambda d: d.rows[3].update(image="a" * 3000), "line 5: image .* is missing"),
}


def _study_without_manifest(desk: Desk, **blocks: Any) -> Path:
    desk.monkeypatch.undo()
    path = desk.write(**blocks)
    (desk.folder / "scans.csv").unlink()
    return path


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_named_by_line_and_file(desk: Desk, name: str) -> None:
    spoil, said = BAD_DATA[name]
    spoil(desk)
    assert_says(desk.refused(), said)


def assert_says(error: str, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(error)


@pytest.mark.parametrize(("picture", "said"), [
    (np.zeros((5, 5), np.uint8), "line 5: mask .*mask3.png has shape 5x5 but the image 16x16"),
    (np.full((16, 16), 7, np.uint8), "line 5: the mask has value 7; allowed with 2 classes are 0 to 1"),
])
def test_a_mask_that_does_not_fit_is_refused(desk: Desk, picture: np.ndarray, said: str) -> None:
    Image.fromarray(picture).save(desk.folder / "mask3.png")
    assert_says(desk.refused(task={"kind": "segmentation"}, model={"name": "basic_unet"}), said)


BAD_STUDIES: dict[str, tuple[dict[str, Any], str]] = {
    "wrong type": ({"federation": {"rounds": "many"}}, "federation.rounds='many': input should be a valid integer"),
    "no rounds": ({"federation": {"rounds": 0}}, "federation.rounds=0: input should be greater than or equal to 1"),
    "negative seed": ({"seed": -1}, "seed=-1: input should be greater than or equal to 0"),
    "unknown key": ({"federaton": {}}, "federaton is not a known key; did you mean 'federation'"),
    "unknown model": ({"model": {"name": "smal_cnn"}}, "model.name='smal_cnn' is not known; did you mean 'small_cnn'"),
    "model of another task": ({"model": {"name": "unet"}}, "model.name='unet' cannot do task.kind='binary'; take one of dens"),
    "option as text": ({"model": {"name": "small_cnn", "options": {"width": "4"}}}, "model.options.width='4' is not allowed"),
    "model too big": ({"model": {"name": "small_cnn", "options": {"width": 10**7}}}, "cannot be built: .*make it smaller"),
    "2-D model on volumes": (
        {"data": {"source": "phantoms", "image_size": [16, 16, 16], "phantoms": {"patients": 8, "hospitals": 2, "dims": 3}},
         "task": {"kind": "binary", "label": "lesion"}, "model": {"name": "wavelet_net"}},
        "has 3 sides, but wavelet_net is 2-D; use small_cnn",
    ),
    "impossible budget": (
        {"privacy": PRIVATE, "policy": {"budget_epsilon": 0.5}},
        "policy.budget_epsilon=0.5 is below the 8 that the study would spend at hospital 'A'; raise the budget",
    ),
    "delta too big": ({"privacy": PRIVATE | {"delta": 0.5}}, "privacy.delta=0.5 must be below 1 / 4"),
    "noise too small": ({"privacy": {"noise_multiplier": 1e-6, "delta": 1e-3}}, "gives no finite epsilon, so it protects nobody"),
    "endless deadline": ({"federation": {"deadline_seconds": float("inf")}}, "deadline_seconds=inf: input should be a finite"),
    "more replies than hospitals": ({"federation": {"minimum_replies": 3}}, "minimum_replies=3 is above the 2 hospitals"),
    "unknown metric": ({"evaluation": {"metric": "acuracy"}}, "evaluation.metric='acuracy' is not known"),
    "no workers": ({"runtime": {"workers": 0}}, "runtime.workers=0: must be auto or a whole number of at least 1"),
    "unknown device": ({"runtime": {"device": "meta"}}, "runtime.device='meta' is not a device of this machine"),
    "everybody held out": ({"hospitals": {"held_out": ["A", "B"]}}, "held_out names every hospital; leave at least one"),
    "unknown held out": ({"hospitals": {"held_out": ["AB"]}}, "hospitals.held_out='AB' is not known; did you mean"),
    "more hospitals than patients": ({"hospitals": {"by": "iid", "count": 50}}, "hospitals=50 are more than the 8 patients"),
}


@pytest.mark.parametrize("name", BAD_STUDIES)
def test_a_bad_study_is_refused_before_anything_is_written(desk: Desk, name: str) -> None:
    blocks, said = BAD_STUDIES[name]
    assert_says(desk.refused(**blocks), said)


@pytest.mark.parametrize(("words", "said"), [
    (["--workers", "²"], "--workers='²' is neither auto nor a whole number"),
    (["--engine", "ray", "--ray-address", "127.0.0.1:9"], "--ray-address='127.0.0.1:9' leads to no Ray cluster"),
    (["--engine", "rai"], "--engine='rai' is neither in_process nor ray"),
    (["--track", "paper"], "--track='paper' is not one of mlflow, tensorboard"),
    (["-o", "federation.rounds"], "override 'federation.rounds' is not of the form key.subkey=value"),
    (["-o", "name=!!python/object/apply:os.getcwd []"], "has no valid YAML value: could not determine a constructor"),
])
def test_bad_options_are_refused(desk: Desk, words: list[str], said: str) -> None:
    assert_says(desk.refused(*words), said)


def test_a_sweep_on_a_cluster_that_is_none_is_refused(desk: Desk) -> None:
    ended = desk.type("sweep", desk.write(), "--out", desk.out, "--epsilon", "inf", "--ray-address", "127.0.0.1:9")
    assert_says(one_error(ended), "--ray-address='127.0.0.1:9' leads to no Ray cluster")
    assert not desk.out.exists()


@pytest.mark.parametrize(("text", "said"), [
    ("", "holds no mapping of keys"), ("- a", "holds no mapping of keys"), ("a: [", "is not valid YAML"),
    ("name: a\nprivacy: {}\nprivacy: null\n", "key 'privacy' is given twice"),
])
def test_a_file_that_is_no_study_is_refused(desk: Desk, text: str, said: str) -> None:
    (desk.folder / "odd.yaml").write_text(text, encoding="utf-8")
    assert_says(one_error(desk.type("simulate", desk.folder / "odd.yaml")), said)


def test_a_missing_study_is_refused(desk: Desk) -> None:
    assert_says(one_error(desk.type("simulate", desk.folder / "none.yaml")), "none.yaml' does not exist; give the path")


def test_a_hospital_of_one_class_trains_and_the_run_says_so_even_when_quiet(desk: Desk) -> None:
    for row in desk.rows:
        row["label"] = "0" if row["site"] == "A" else row["label"]
    ended = desk.simulate("--quiet")
    assert ended.code == 0
    assert warnings_in(ended) == [
        "warning: hospitals that train on one class only: A (class 0); they learn that class alone.",
        "warning: hospitals that test on one class only: A (class 0); metrics that compare classes, such as AUROC, are not "
        "defined there.",
    ]
    report = json.loads((desk.out / "report.json").read_text(encoding="utf-8"))
    assert report["sites"]["A"]["test"]["auroc"]["value"] is None
    assert report["sites"]["B"]["test"]["auroc"]["value"] is not None


def test_a_run_without_test_patients_says_that_nothing_is_measured(desk: Desk) -> None:
    desk.rows = [row for row in desk.rows if row["split"] == "train"]
    told = warnings_in(desk.simulate())
    assert told == ["warning: no hospital has a test patient, so nothing is measured; raise data.split.test."]


def test_a_good_study_warns_of_nothing_and_odd_hospital_names_stay_inside_the_folder(desk: Desk) -> None:
    for row in desk.rows:
        row["site"] = {"A": "../../Zürich 東", "B": ".."}[row["site"]]
    ended = desk.simulate()
    assert ended.code == 0
    assert not warnings_in(ended)
    assert len(list((desk.out / "sites").iterdir())) == 2


def test_the_folder_of_another_study_a_finished_one_or_somebody_elses_is_left_alone(desk: Desk) -> None:
    assert desk.simulate().code == 0
    before = contents(desk.out)
    assert_says(one_error(desk.simulate(seed=5)), "holds another study .* choose another --out")
    assert_says(one_error(desk.simulate("--resume", seed=5)), "holds another study")
    assert_says(one_error(desk.simulate()), "holds a finished run of this study; add --resume, or choose another --out")
    assert contents(desk.out) == before
    mine = desk.folder / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("1", encoding="utf-8")
    assert_says(one_error(desk.simulate("--out", mine)), "is not empty and holds no run .it has 'thesis.txt'.")
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert_says(one_error(desk.simulate("--out", mine / "thesis.txt")), "cannot write .*thesis.txt")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_processes_cannot_work_in_one_run_folder(desk: Desk) -> None:
    import fcntl

    desk.interrupted()
    with (desk.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_says(one_error(desk.resumed()), "is in use by another process; choose another --out")
    assert desk.resumed().code == 0


def spoil_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def checkpoint_of(round: int, **changes: Any) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        with np.load(run / "checkpoint.npz", allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        np.savez(run / "checkpoint.npz", allow_pickle=False, **(arrays | {"round": np.int64(round)} | changes))

    return write


SPOILT_RUNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty checkpoint": (lambda run: os.truncate(run / "checkpoint.npz", 0), "checkpoint .* cannot be read"),
    "cut checkpoint": (lambda run: os.truncate(run / "checkpoint.npz", 700), "checkpoint .* cannot be read"),
    "flipped checkpoint": (lambda run: spoil_bytes(run / "checkpoint.npz"), "checkpoint .* cannot be read"),
    "checkpoint of the future": (checkpoint_of(99), "checkpoint .* is none of this study"),
    "checkpoint of another network": (checkpoint_of(2, weights=np.zeros(3, np.float32)), "checkpoint .* is none of this study"),
    "broken run.json": (lambda run: (run / "run.json").write_text("{"), "run.json' cannot be read"),
    "broken study.yaml": (lambda run: (run / "study.yaml").write_text("{"), "the run folder's own study cannot be read"),
    "another image": (lambda run: Image.new("L", (16, 16)).save(run.parent / "3.png"), "the data changed since the run"),
}


@pytest.mark.parametrize("name", SPOILT_RUNS)
def test_a_run_that_was_tampered_with_does_not_go_on(desk: Desk, name: str) -> None:
    desk.interrupted()
    spoil, said = SPOILT_RUNS[name]
    spoil(desk.out)
    assert_says(one_error(desk.resumed()), said)
    assert not (desk.out / "report.json").exists()


def test_lost_or_cut_round_lines_do_not_stop_a_resume(desk: Desk) -> None:
    desk.interrupted()
    (desk.out / "rounds.jsonl").write_bytes(b'\xff\xfe{\n[1]\n{"round": 1, "cut')
    assert desk.resumed().code == 0
    assert [row["round"] for row in RunDir(desk.out).rounds()] == [3]


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda ledger: ledger.unlink(), "the ledger .* is missing"),
    (lambda ledger: [path.unlink() for path in ledger.parent.glob("ledger.sqlite*")], "the ledger .* is missing"),
    (spoil_bytes, "ledger"),
])
def test_a_lost_or_altered_ledger_ends_a_private_run(desk: Desk, spoil: Callable[[Path], object], said: str) -> None:
    desk.interrupted(privacy=PRIVATE)
    spoil(desk.out / "sites" / "A" / "ledger.sqlite")
    ended = desk.resumed(privacy=PRIVATE)
    assert "A refused (ledger)" in ended.err
    assert_says(one_error(ended), said)
    assert not (desk.out / "report.json").exists()


def test_report_on_what_is_no_finished_run(desk: Desk) -> None:
    assert_says(one_error(desk.type("report", desk.folder)), "report.json is missing; let the run finish")
    (desk.folder / "report.json").write_text('{"schema": "fedimaging-report/1", "sites": 3}', encoding="utf-8")
    assert_says(one_error(desk.type("report", desk.folder)), "report.json is not as a run writes it")
    assert not (desk.folder / "report.html").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; skipped where this user may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_under_the_image_store_leaves_nothing(desk: Desk, small_disk: Path) -> None:
    desk.monkeypatch.setenv("FEDIMAGING_CACHE", str(small_disk))
    error = desk.refused("-o", "data.image_size=[256, 256]")
    assert_says(error, "no space left for image store .*; free some or set FEDIMAGING_CACHE elsewhere")
    assert [path.name for path in small_disk.iterdir() if path.name != "hashes.json"] == []


@pytest.mark.parametrize(("pages", "privacy"), [(0, None), (3, None), (7, None), (11, None), (8, PRIVATE), (18, PRIVATE)])
def test_a_full_disk_under_the_run_folder_is_one_error_and_resumable(
    desk: Desk, small_disk: Path, pages: int, privacy: dict[str, Any] | None
) -> None:
    size = os.sysconf("SC_PAGE_SIZE")
    out, filler = small_disk / "run", small_disk / "filler"
    out.mkdir()
    with filler.open("wb") as file:
        file.write(bytes(2 * 2**20 - pages * size))
    error = one_error(desk.simulate("--out", out, privacy=privacy))
    assert_says(error, "no space left on the disk that holds|cannot write|: 0 of 2 hospitals sent an update")
    assert not list(small_disk.rglob("*.part"))
    filler.unlink()
    words = ["--resume"] if (out / "study.yaml").exists() else []
    assert desk.simulate("--out", out, *words, privacy=privacy).code == 0
    assert len(RunDir(out).rounds()) == 2


def test_ctrl_c_in_the_middle_of_a_run_is_one_line_and_resumable(desk: Desk) -> None:
    runtime = {"workers": 2, "device": "cpu"}
    blocks = {"federation": {"rounds": 300}, "evaluation": {"every": 0, "resamples": 100}, "runtime": runtime}
    words = ["simulate", str(desk.write(**blocks)), "--out", str(desk.out), "--no-report"]
    command = [sys.executable, "-m", "fedimaging.cli", *words]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (desk.out / "checkpoint.npz").exists() and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted; what was finished is kept, go on with --resume (a sweep: the same command)."
    done = len(RunDir(desk.out).rounds())
    assert 1 <= done < 300
    ended = desk.simulate("--resume", **blocks)
    assert ended.code == 0, ended.err
    assert f"round {done + 1}/300" in ended.err or f"round {done}/300" in ended.err  # the last line may lack its checkpoint
    assert len(RunDir(desk.out).rounds()) == 300


def test_the_installed_module_says_the_same(desk: Desk) -> None:
    command = [sys.executable, "-m", "fedimaging.cli", "simulate", str(desk.write(seed=-1))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_says(one_error(Ended(ended.returncode, ended.stdout, ended.stderr)), "seed=-1")
