"""A federation of real processes on hosts of their own, by the guide's commands, on real X-rays. See README.md.

    python experiments/deployment/run.py FOLDER --data FOLDER_WITH_cxr_multisite [--test-mode]
"""

import argparse
import contextlib
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from network import SERVER, can_be_made, inside, network
from people import FEDERATION, REGIONS, Person, give_data, write_manifest
from safetensors.numpy import load_file

HERE = Path(__file__).parent
HOSPITALS = ("north", "south", "west")
PROGRAM = Path(sys.executable).parent / "fedimaging"


def make_person(name: str, folder: Path) -> Person:
    """Their home is made; their computer is the host of their name."""
    (folder / name).mkdir(parents=True)
    return Person(name, folder / name, PROGRAM, lambda command: inside(name, command))


def set_policy(hospital: Person, **changes: str) -> None:
    """Edit policy.yaml as a person would, line by line."""
    path = hospital.home / hospital.name / "policy.yaml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for key, value in changes.items():
        (place,) = (k for k, line in enumerate(lines) if line.startswith(f"{key}:"))
        lines[place] = f"{key}: {value}\n"
    path.write_text("".join(lines), encoding="utf-8")


def join(hospital: Person, operator: Person, test_mode: bool) -> str:
    """From nothing to joined; returns what `site check` said."""
    scans, folder = hospital.home / "scans", hospital.home / hospital.name
    patients = give_data(SOURCE, scans, hospital.name, REGIONS[hospital.name])
    for name in ("ca.crt", "study.yaml"):  # as the operator sent them
        shutil.copy(operator.home / ("federation" if name == "ca.crt" else "") / name, hospital.home / name)
    hospital.does(hospital.typed("site init", **{"/data/images": str(scans)}))
    policy = {"release_evaluation": "metrics"}  # public images: so that the report has figures
    set_policy(hospital, **policy, **({"allow_simulated_noise": "true"} if test_mode else {}))
    shutil.copy(folder / "keys" / "node.pub", operator.home / "node.pub")  # as the hospital sent it
    operator.does(operator.typed("server add-site", north=hospital.name, **{"1200": str(patients)}))
    hospital.does(hospital.typed("site approve", "--yes"))
    said = hospital.does(hospital.typed("site check"))
    hospital.starts(hospital.typed("site run"))
    return said


def books(hospital: Person) -> None:
    """What the hospital's people can see afterwards."""
    for command in ("site status", "site log north --verify", "site report"):
        print(hospital.does(hospital.typed(command)), flush=True)
    print(hospital.does(hospital.typed("site ledger")).splitlines()[-1], flush=True)


def reaches(person: Person, address: str, port: int) -> bool:
    """Whether a TCP connection from their host can be made."""
    code = f"import socket; socket.create_connection(({address!r}, {port}), timeout=2)"
    done = subprocess.run(person.on_host([sys.executable, "-c", code]), capture_output=True)
    return done.returncode == 0


def routes(people: dict[str, Person]) -> None:
    """What a hospital's host reaches: the server's one port, no other hospital, nothing beyond."""
    north = people["north"]
    tried = {
        "the server": (SERVER, 8443), "another port of it": (SERVER, 22), "another hospital": (f"{SERVER[:-1]}3", 8443),
        "the world": ("192.0.2.1", 443),
    }
    for what, (address, port) in tried.items():
        print(f"north reaches {what}: {'yes' if reaches(north, address, port) else 'no'}", flush=True)


def simulate(folder: Path, data: list[Path]) -> Path:
    """The same study on the same images in one place."""
    pool = folder / "simulation"
    (pool / "images").mkdir(parents=True)
    rows: list[dict[str, str]] = []
    for scans in data:
        with (scans / "manifest.csv").open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
        for image in (scans / "images").iterdir():
            (pool / "images" / image.name).symlink_to(image)
    write_manifest(pool / "manifest.csv", rows)
    alone = Person("researcher", pool, PROGRAM, list)
    shutil.copy(HERE / "study.yaml", pool / "study.yaml")
    alone.does(["fedimaging", "simulate", "study.yaml", "--out", "run", "--quiet", "-o", "policy.release_evaluation=metrics"])
    return pool / "run"


def compare(deployed: Path, simulated: Path) -> float:
    """Largest difference of any number of the two final models."""
    ours, theirs = load_file(deployed / "weights.safetensors"), load_file(simulated / "weights.safetensors")
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[key] - theirs[key]).max()) for key in ours)


@contextlib.contextmanager
def everybody(folder: Path) -> Iterator[dict[str, Person]]:
    """The operator and the hospitals; what they started is ended when the block is left."""
    people = {name: make_person(name, folder) for name in ("operator", *HOSPITALS)}
    try:
        yield people
    finally:
        for person in reversed(people.values()):
            person.end()


def main(folder: Path, test_mode: bool) -> None:
    """Everything of the guide, in its order."""
    with network("operator", HOSPITALS, FEDERATION), everybody(folder) as people:
        operator, hospitals = people["operator"], [people[name] for name in HOSPITALS]
        shutil.copy(HERE / "study.yaml", operator.home / "study.yaml")
        operator.does(operator.typed("server init"))
        operator.starts(operator.typed("server start"))
        while not reaches(people["north"], SERVER, 8443):
            time.sleep(0.5)
        for hospital in hospitals:
            print(join(hospital, operator, test_mode), flush=True)
        began = time.monotonic()
        operator.does(operator.typed("server run"))
        print(f"trained to the end in {time.monotonic() - began:.1f} s", flush=True)
        print(operator.does(operator.typed("server status")), flush=True)
        routes(people)
        for hospital in hospitals:
            books(hospital)
    (run,) = (folder / "operator" / "federation" / "runs").iterdir()
    print(f"the server's report: {run / 'report.html'}")
    if test_mode:
        difference = compare(run, simulate(folder, [folder / name / "scans" for name in HOSPITALS]))
        print(f"largest difference from the simulation's weights: {difference:.2e}")
        if difference > 1e-5:
            raise SystemExit("the simulation gave other weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test-mode", action="store_true", help="repeatable noise; compare the weights with a simulation's")
    given = parser.parse_args()
    if not can_be_made():
        raise SystemExit("network namespaces need root and the program `ip`")
    SOURCE = given.data.absolute() / "cxr_multisite"
    given.folder.mkdir(parents=True)
    main(given.folder.absolute(), given.test_mode)
