"""Lay out a federation of four hospitals for one machine: `python container/demonstration.py FOLDER --host NAME`.

    FOLDER/server             the operator's folder, with the study to run
    FOLDER/hospital_01 …      the hospitals' site folders: keys exchanged, study approved
    FOLDER/scans/hospital_01  generated scans of people who never lived, and their manifest

Every command that it runs is printed, as real people would type it on their own machines.
"""

import argparse
import csv
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from fedimaging.data.spec import PhantomSpec
from fedimaging.data.synthetic import draw_scans, render

ROOT = Path(__file__).parents[1]
IMAGE_SIZE = (48, 48)


def fedimaging(folder: Path, command: str) -> None:
    """Run a command in the folder. Error: CalledProcessError."""
    print(f"$ fedimaging {command}", flush=True)
    subprocess.run([sys.executable, "-m", "fedimaging.cli", *shlex.split(command)], cwd=folder, check=True)


def write_scans(folder: Path, phantoms: PhantomSpec) -> list[str]:
    """A folder of PNGs with a manifest for each hospital; returns the hospitals' names."""
    people = draw_scans(phantoms)
    rows: dict[str, list[tuple[str, str, int]]] = {}
    for number, phantom in enumerate(render(phantoms, people, IMAGE_SIZE)):
        site, name = str(people.columns["site"][number]), f"{number:05d}.png"
        (folder / site).mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantom.image[0]).save(folder / site / name)
        rows.setdefault(site, []).append((name, str(people.patient_ids[number]), int(people.labels["lesion"][number])))
    for site, lines in rows.items():
        with (folder / site / "manifest.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", "patient_id", "site", "lesion"), *((a, b, site, c) for a, b, c in lines)])
    return sorted(rows)


def study_of(sites: list[str], rounds: int) -> dict[str, Any]:
    """The quickstart study, over these hospitals instead of simulated ones, with less to spend."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    del tree["data"]["phantoms"]
    tree["name"] = "demonstration"
    tree["data"] |= {"source": "manifest", "path": "manifest.csv", "root": "."}
    tree["hospitals"]["sites"] = sites
    tree["privacy"] |= {"target_epsilon": 6.0, "delta": 1e-5}
    tree["federation"] |= {"rounds": rounds, "minimum_replies": 3}
    return tree


def lay_out(folder: Path, host: str, rounds: int) -> None:
    """Everything up to the point where server and hospitals can be started."""
    sites = write_scans(folder / "scans", PhantomSpec(patients=900, hospitals=4, scans_per_patient=(1, 2)))
    found(folder, host, study_of(sites, rounds))


def found(folder: Path, host: str, study: dict[str, Any]) -> None:
    """Server and hospitals of this study, each with the scans that lie in FOLDER/scans: keys exchanged, study approved."""
    fedimaging(folder, f"server init server --host {host}")
    (folder / "server" / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    for site in study["hospitals"]["sites"]:
        fedimaging(folder, f"site init {site} --name {site} --server {host}:8443 --ca server/ca.crt --data ../scans/{site}")
        policy = folder / site / "policy.yaml"
        policy.write_text(policy.read_text(encoding="utf-8").replace("release_evaluation: none", "release_evaluation: coarsened"))
        fedimaging(folder, f"server add-site server {site} {site}/keys/node.pub")
        fedimaging(folder, f"site approve {site} server/study.yaml --name 'A. Person' --reason 'a demonstration' --yes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="server", help="how the hospitals reach the server")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    lay_out(given.folder, given.host, given.rounds)
