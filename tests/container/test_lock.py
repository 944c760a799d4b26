"""What is pinned for the image is what the package asks for, each wheel by its hash."""

import json
import re
import subprocess
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.container.scripts import CONTAINER, script

_PINNED = dict(
    re.findall(r"^([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", (CONTAINER / "requirements.txt").read_text(), re.MULTILINE)
)
_LEFT_OUT = {"torchvision", "uv", "ray"}


def test_every_line_pins_a_version_and_a_hash() -> None:
    lines = [line for line in (CONTAINER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(_PINNED)
    assert not _LEFT_OUT & _PINNED.keys()


def test_the_pins_are_what_the_package_asks_for() -> None:
    tree = tomllib.loads((CONTAINER.parent / "pyproject.toml").read_text())
    for line in tree["project"]["dependencies"]:
        asked = Requirement(line)
        if (name := canonicalize_name(asked.name)) not in _LEFT_OUT:
            assert asked.specifier.contains(_PINNED[name], prereleases=True), line


def test_one_build_of_pytorch_is_asked_for_and_no_torchvision() -> None:
    wanted = script("lock").wanted("2.13.0+cpu")
    assert "torch==2.13.0+cpu" in wanted
    assert "pip" in wanted
    assert [line for line in wanted if line.startswith("torch")] == ["torch==2.13.0+cpu"]
    assert "flwr==1.41.0" in wanted  # without its extra for simulations


def test_pips_answer_becomes_sorted_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        assert "one>=1" in command
        told = [
            {"metadata": {"name": name, "version": "1.0"}, "download_info": {"archive_info": {"hashes": {"sha256": "ab"}}}}
            for name in ("Typing_Extensions", "ray", "one")
        ]
        return subprocess.CompletedProcess(command, 0, json.dumps({"install": told}))

    monkeypatch.setattr(subprocess, "run", answer)
    assert script("lock").resolve(["one>=1"]) == [("one", "1.0", "ab"), ("typing-extensions", "1.0", "ab")]
