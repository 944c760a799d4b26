"""Monitoring a release of phantoms: planted drifts are found with their size, new patients of the same kind raise no more
alarms than stated, and a named person acknowledges what was found."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.stats import binom
from typer.testing import CliRunner

from fedimaging.cli import app
from fedimaging.data import synthetic
from fedimaging.data.spec import PhantomSpec
from fedimaging.errors import DataError, LedgerError, ReleaseError
from fedimaging.release.drift import WATCH_RATE
from fedimaging.release.folder import release
from fedimaging.release.monitor import LOG, PAGE, acknowledge, look
from fedimaging.release.opened import Release, open_release
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.site.audit_log import read
from fedimaging.study.load import load
from tests.release.conftest import KEY, PEOPLE, ROOT

SIDE = 24
SPEC = PhantomSpec(
    patients=900, hospitals=3, scans_per_patient=(1, 2), scanner_difference=0, lesion_contrast=0.8, lesion_radius=(0.2, 0.24),
    prevalence=(0.3, 0.3), hard_contrast=1.0,
)
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """About 270 test patients, all seen by one scanner; groups by sex."""
    folder = tmp_path_factory.mktemp("monitored")
    study = load(ROOT / "configs" / "quickstart.yaml", [
        f"data.phantoms={json.dumps(SPEC.model_dump(mode='json'))}", f"data.image_size=[{SIDE},{SIDE}]", "data.split.test=0.3",
        "privacy=null", "federation.rounds=25", "evaluation.groups=[sex]", "evaluation.resamples=100", "evaluation.every=0",
        "runtime.workers=1", "runtime.device=cpu",
    ])
    with LiveView(study.federation.rounds, quiet=True) as view:
        simulate(study, folder / "run", Options(workers=1, report=False), view)
    return open_release(release(folder / "run", PEOPLE, KEY, {}, folder / "release"))


def write_scans(
    folder: Path, seed: int, patients: int = 100, change: Change = lambda x: x, *, labels: bool = True,
    wrong: float = 0.0, **spec: object,
) -> Path:
    """A manifest of new patients, whose pictures (0..1) go through `change`; a share `wrong` of the labels is turned over."""
    drawn = SPEC.model_copy(update={"patients": patients, "seed": 1000 + seed, **spec})
    people, rng = synthetic.draw_scans(drawn), np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for number, scan in enumerate(synthetic.render(drawn, people, (SIDE, SIDE))):
        picture = np.clip(change(scan.image[0] / 255), 0, 1)
        Image.fromarray(np.round(255 * picture).astype(np.uint8)).save(folder / f"{number}.png")
        label = int(people.labels["lesion"][number]) ^ int(rng.random() < wrong)
        rows.append([f"{number}.png", people.patient_ids[number], people.columns["sex"][number], label])
    with (folder / "new.csv").open("w", newline="") as file:
        names = ["image", "patient_id", "sex", "lesion"]
        csv.writer(file).writerows([row if labels else row[:3] for row in [names, *rows]])
    return folder / "new.csv"


def finding(tree: dict, what: str, name: str) -> dict:
    (one,) = [one for one in tree["drift"] if (one["what"], one["name"], one["group"]) == (what, name, None)]
    return one


def test_new_patients_of_the_same_kind_raise_no_more_alarms_than_stated(opened: Release, tmp_path: Path) -> None:
    levels = [
        look(opened, write_scans(tmp_path / str(seed), seed, 60), tmp_path / f"out{seed}")["level"] for seed in range(20)
    ]
    assert sum(level != "none" for level in levels) <= binom.ppf(0.999, 20, WATCH_RATE)
    assert "act" not in levels


def test_a_brighter_detector_is_found_with_its_size(opened: Release, tmp_path: Path) -> None:
    tree = look(opened, write_scans(tmp_path / "x", 0, change=lambda x: x + 0.1), tmp_path / "out")
    found = finding(tree, "input", "mean")
    assert tree["level"] == found["level"] == "act"
    assert found["after"] - found["before"] == pytest.approx(0.1, abs=0.02)


def test_another_scanner_is_found_by_its_sharpness(opened: Release, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noisy = look(opened, write_scans(tmp_path / "x", 0, change=lambda x: x + rng.normal(0, 0.08, x.shape)), tmp_path / "a")
    blurred = look(opened, write_scans(tmp_path / "y", 0, change=lambda x: ndimage.gaussian_filter(x, 1)), tmp_path / "b")
    plain = look(opened, write_scans(tmp_path / "z", 0), tmp_path / "c")
    usual = finding(plain, "input", "sharpness")["after"]
    assert noisy["level"] == blurred["level"] == "act"
    assert finding(noisy, "input", "sharpness")["after"] > 1.15 * usual
    assert finding(blurred, "input", "sharpness")["after"] < usual / 1.15


def test_more_ill_patients_are_found_in_the_scores_and_nowhere_else_by_chance(opened: Release, tmp_path: Path) -> None:
    """The mean score moves by the change in prevalence times what a lesion adds to it."""
    tree = look(opened, write_scans(tmp_path / "x", 0, 150, prevalence=(0.75, 0.75)), tmp_path / "out")
    found = finding(tree, "scores", "lesion")
    assert found["level"] == "act"
    same = finding(look(opened, write_scans(tmp_path / "y", 0, 150), tmp_path / "out2"), "scores", "lesion")
    everybody_ill = write_scans(tmp_path / "z", 1, 150, prevalence=(0.99, 0.99))
    ill = finding(look(opened, everybody_ill, tmp_path / "out3"), "scores", "lesion")
    adds = (ill["after"] - same["after"]) / (0.99 - 0.3)
    assert found["after"] - found["before"] == pytest.approx((0.75 - 0.3) * adds, abs=0.06)
    assert finding(tree, "performance", "auroc")["level"] == "none"


def test_wrong_answers_are_found_where_there_are_labels(opened: Release, tmp_path: Path) -> None:
    """Turning over a quarter of the labels brings an AUROC a to about 1/2 + (a - 1/2) d, with d from the classes' mix."""
    tree = look(opened, write_scans(tmp_path / "x", 0, 150, wrong=0.25), tmp_path / "out")
    found = finding(tree, "performance", "auroc")
    ill, well = 0.3 * 0.75 + 0.7 * 0.25, 0.7 * 0.75 + 0.3 * 0.25  # shares that are called ill, well
    d = 0.3 * 0.75 / ill - 0.3 * 0.25 / well
    assert found["level"] == "act"
    assert found["after"] == pytest.approx(0.5 + (found["before"] - 0.5) * d, abs=0.08)
    assert not [one for one in tree["drift"] if one["what"] != "performance" and one["level"] == "act"]
    blind = look(opened, write_scans(tmp_path / "y", 0, 150, labels=False), tmp_path / "out2")
    assert not [one for one in blind["drift"] if one["what"] == "performance"]
    assert "Performance was not measured" in (tmp_path / "out2" / PAGE).read_text()


def test_groups_are_compared_with_their_own_and_small_ones_not_at_all(opened: Release, tmp_path: Path) -> None:
    tree = look(opened, write_scans(tmp_path / "x", 0, 12), tmp_path / "out")
    assert {one["group"] and tuple(one["group"]) for one in tree["drift"]} == {None}
    tree = look(opened, write_scans(tmp_path / "y", 0, 80), tmp_path / "out")
    assert {one["group"] and tuple(one["group"]) for one in tree["drift"]} == {None, ("sex", "F"), ("sex", "M")}


def test_a_named_person_acknowledges_and_the_log_keeps_it(opened: Release, tmp_path: Path) -> None:
    bright, out = write_scans(tmp_path / "x", 0, change=lambda x: x + 0.1), tmp_path / "out"
    command = ["monitor", str(opened.folder), str(bright), "--out", str(out)]
    seen = CliRunner().invoke(app, command)
    assert seen.exit_code == 1
    assert seen.output.startswith("level act: 100 patients")
    assert "Nobody has acknowledged this look" in (out / PAGE).read_text()
    with pytest.raises(ReleaseError, match="reason"):
        acknowledge(opened, bright, out, who="Dr. A", why=" ")
    done = CliRunner().invoke(app, [*command, "--acknowledge", "Dr. A", "--reason", "new detector; model paused"])
    assert done.exit_code == 0
    page = (out / PAGE).read_text()
    assert "Acknowledged by Dr. A" in page
    assert "Nobody has acknowledged" not in page
    assert [event["event"] for event in read(out / LOG)] == ["look", "acknowledged"]
    other = write_scans(tmp_path / "y", 5)
    with pytest.raises(ReleaseError, match="no look at this release and manifest"):
        acknowledge(opened, other, out, who="Dr. A", why="fine")
    (out / LOG).write_text((out / LOG).read_text().replace("Dr. A", "Dr. B"))
    with pytest.raises(LedgerError):
        look(opened, other, out)


def test_page_log_and_figures_name_no_patient_and_no_file(opened: Release, tmp_path: Path) -> None:
    manifest, out = write_scans(tmp_path / "x", 0, 30), tmp_path / "out"
    look(opened, manifest, out)
    for path in out.iterdir():
        assert not re.search(r"patient-0|\.png|new\.csv", path.read_text())
    assert "http" not in (out / PAGE).read_text().replace("http-equiv", "")


def test_what_cannot_be_read_is_said_with_its_line(opened: Release, tmp_path: Path) -> None:
    manifest = write_scans(tmp_path / "x", 0, 12)
    (manifest.parent / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="line 5"):
        look(opened, manifest, tmp_path / "out")
    manifest.write_text(manifest.read_text().replace(",1\n", ",7\n"))
    with pytest.raises(DataError, match="lesion='7'"):
        look(opened, manifest, tmp_path / "out")
    assert not (tmp_path / "out" / PAGE).exists()
