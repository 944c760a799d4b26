"""Pin what goes into the image: `python3 container/lock.py TORCH > container/requirements.txt`, e.g. with TORCH 2.13.0+cpu.

Run it with the image's Python (3.11) on its platform (Linux, x86-64): pip answers for where it runs. Which index is asked is
the user's own pip configuration; it must have the build of PyTorch that is named.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TORCHVISION = "torchvision"
"""Left out: three networks need it, and no index has one build of it that runs with every build of PyTorch."""

LEFT_OUT = {"uv", "ray"}
"""Flower's own, to install what a run asks for and to simulate: nothing in the image can install anything."""

HEAD = """\
# What the image is made of, besides fedimaging itself: written by container/lock.py, not by hand.
# torchvision, uv and ray are left out on purpose; pip is used to build the image and is not in it.
"""


def wanted(torch: str) -> list[str]:
    """pyproject's dependencies, with one build of PyTorch and without extras."""
    tree = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    given = [Requirement(line) for line in tree["project"]["dependencies"]]
    kept = [one for one in given if canonicalize_name(one.name) not in {TORCHVISION, "torch"}]
    return [f"torch=={torch}", "pip", *(f"{one.name}{one.specifier}" for one in kept)]


def resolve(requirements: list[str]) -> list[tuple[str, str, str]]:
    """(name, version, sha256 of the wheel) of all that pip would install, by name."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
    told = subprocess.run([*command, "--report", "-", *requirements], stdout=subprocess.PIPE, check=True, text=True)
    found = []
    for item in json.loads(told.stdout)["install"]:
        name = canonicalize_name(item["metadata"]["name"])
        found.append((name, item["metadata"]["version"], item["download_info"]["archive_info"]["hashes"]["sha256"]))
    return sorted(one for one in found if one[0] not in LEFT_OUT)


if __name__ == "__main__":
    print(HEAD, end="")
    for name, version, digest in resolve(wanted(sys.argv[1])):
        print(f"{name}=={version} --hash=sha256:{digest}")
