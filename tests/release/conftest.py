"""One finished run of a tiny federation for all tests of releases, from a manifest full of things that must not get out."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from fedimaging.data import synthetic
from fedimaging.data.spec import PhantomSpec
from fedimaging.release.card import People
from fedimaging.release.folder import release
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.study.load import load

ROOT = Path(__file__).parents[2]
PEOPLE = People("Dr Ada Example", "head of radiology", "agreed by the board")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SITES = {"north": 60, "south": 50, "tiny": 7, "outside": 30}
RELEASE = "release={minimum_external: 0.0, largest_subgroup_gap: 1.0, intended_use: triage of phantoms, not_for: [children]}"


@dataclass(frozen=True)
class Planted:
    """What a manifest held that no release may hold."""

    folder: Path
    manifest: Path
    words: tuple[str, ...]
    images: tuple[Path, ...]


def plant(folder: Path) -> Planted:
    """A manifest of phantoms at four hospitals, one of seven patients, with ids and names that are told from anything."""
    home = folder / "zzfolderofpatients"
    home.mkdir(parents=True)
    spec = PhantomSpec(patients=sum(SITES.values()), hospitals=3, scans_per_patient=(1, 1), seed=3)
    people = synthetic.draw_scans(spec)
    site_of = [name for name, size in SITES.items() for _ in range(size)]
    rng = np.random.default_rng(0)
    rng.shuffle(site_of)
    rows, images = [], []
    for number, scan in enumerate(synthetic.render(spec, people, (16, 16))):
        path = home / f"zzimage{number:03d}.png"
        Image.fromarray(scan.image[0]).save(path)
        images.append(path)
        few = "zzrare" if number % 40 == 0 else ("F", "M")[number % 2]
        rows.append([path.name, f"zzpatient{number:03d}", site_of[number], few, int(people.labels["lesion"][number]), "zzdoctor"])
    manifest = home / "zzmanifest.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "patient_id", "site", "sex", "lesion", "doctor"], *rows])
    ours = ("zzfolderofpatients", "zzimage", "zzpatient", "zzmanifest", "zzdoctor", "zzrare")
    words = (*ours, str(folder), str(ROOT), sys.prefix, "site-packages")
    return Planted(home, manifest, words, tuple(images))


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The images and manifest of the run below."""
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def finished(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be written to: see `run`."""
    study = load(ROOT / "configs" / "quickstart.yaml", [
        "name=tiny", "data.source=manifest", f"data.path={planted.manifest.name}", f"data.root={planted.folder}",
        "data.phantoms=null", "data.image_size=[16,16]", "data.split.test=0.4", "hospitals.held_out=[outside]",
        "federation.rounds=3", "evaluation.groups=[sex]", "evaluation.resamples=100", "evaluation.examples=0",
        "runtime={workers: 1, device: cpu}", RELEASE,
    ])  # fmt: skip
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with LiveView(3, quiet=True) as view:
        simulate(study, out, Options(report=False, workers=1), view)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The run, to be changed at will."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def released(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its release; not to be written to."""
    return release(finished, PEOPLE, KEY, {}, tmp_path_factory.mktemp("released") / "release")


def change(path: Path, do: Callable[[dict], object]) -> None:
    """Change a JSON file in place."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    do(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")
