"""A release is whole, signed, and holds nothing of a patient; one changed byte anywhere is found."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedimaging.errors import ReleaseError
from fedimaging.files import sha256_of
from fedimaging.release.card import People
from fedimaging.release.folder import release
from fedimaging.release.signing import public_text
from fedimaging.release.verify import SCHEMA, verify
from fedimaging.study.load import load
from tests.release.conftest import KEY, PEOPLE, Planted

FILES = {"study.yaml", "reference.json", "card.md", "card.html", "bundle/configs/metadata.json", "bundle/configs/inference.json",
         "bundle/models/model.pt", "bundle/models/model.ts", "bundle/docs/README.md", "bundle/LICENSE"}  # fmt: skip


def test_the_manifest_says_who_what_and_why(released: Path, finished: Path) -> None:
    manifest = verify(released, public_text(KEY.public_key()))
    assert manifest["schema"] == SCHEMA
    assert set(manifest["files"]) >= FILES
    assert [manifest[key] for key in ("approved_by", "role", "reason")] == list(vars(PEOPLE).values())
    assert manifest["study_fingerprint"] == load(finished / "study.yaml").fingerprint
    assert manifest["model_sha256"] == sha256_of(released / "bundle/models/model.pt")
    assert manifest["run_weights_sha256"] == sha256_of(finished / "weights.safetensors")
    assert {c["name"] for c in manifest["checks"]} == {
        "finished", "fingerprints", "model", "ledgers", "privacy_claim", "external", "subgroup_gap",
    }  # fmt: skip
    assert all(c["passed"] for c in manifest["checks"])
    assert set(manifest["ledgers"]) == {"north", "south", "tiny"}
    assert 7 < manifest["ledgers"]["north"]["epsilon"] <= 8
    assert manifest["export"]["largest_difference"] <= 1e-5


def test_one_changed_byte_in_any_file_is_found(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    shutil.copytree(released, folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            for place in {0, len(content) // 2, len(content) - 1}:
                path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
                with pytest.raises(ReleaseError, match=path.name):
                    verify(folder)
            path.write_bytes(content)
    verify(folder)


def test_missing_added_and_linked_files_are_found(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    shutil.copytree(released, folder)
    (folder / "bundle" / "more.py").write_text("", encoding="utf-8")
    with pytest.raises(ReleaseError, match=r"bundle/more\.py is no part"):
        verify(folder)
    (folder / "bundle" / "more.py").unlink()
    (folder / "card.md").rename(tmp_path / "card.md")
    with pytest.raises(ReleaseError, match=r"card.md is missing"):
        verify(folder)
    (folder / "card.md").symlink_to(tmp_path / "card.md")
    with pytest.raises(ReleaseError, match=r"card.md was altered"):
        verify(folder)
    with pytest.raises(ReleaseError, match="is no release"):
        verify(tmp_path)


def test_a_signature_of_somebody_else_is_found(released: Path) -> None:
    with pytest.raises(ReleaseError, match="signed with another key"):
        verify(released, public_text(Ed25519PrivateKey.generate().public_key()))
    with pytest.raises(ReleaseError, match="no public key"):
        verify(released, "nonsense")


def test_nothing_of_a_patient_or_a_machine_is_in_any_byte(released: Path, planted: Planted) -> None:
    for path in released.rglob("*"):
        assert not any(word in path.name for word in planted.words)
        content = path.read_bytes() if path.is_file() else b""
        for word in planted.words:
            assert word.encode() not in content, f"{word} in {path.name}"


def counts(tree: Any) -> Iterator[int | None]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if "patients" in key:
                yield value
            else:
                yield from counts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from counts(value)


def test_no_count_below_the_minimum_is_shown(released: Path, finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert 0 < report["sites"]["tiny"]["test_patients"] < 10
    assert report["groups"]["sex"]["too few"]["n_patients"] < 10
    reference = json.loads((released / "reference.json").read_text(encoding="utf-8"))
    found = list(counts(reference))
    assert len(found) > 5
    assert all(n is None or n % 10 == 0 for n in found)
    assert reference["counts_rounded_down"]
    card = (released / "card.md").read_text(encoding="utf-8")
    assert "| tiny | trained | fewer than 10 | fewer than 10 |" in card
    assert "| tiny |" not in card.split("## Performance")[1].split("## Privacy")[0]


def test_the_study_of_a_release_loads_and_is_the_same_but_for_paths(released: Path, finished: Path) -> None:
    shown, own = load(released / "study.yaml"), load(finished / "study.yaml")
    assert shown.data.path == "not-released"
    assert shown.data.root == "."
    parts = {"data": True, "runtime": True}
    assert shown.model_dump(exclude=parts) == own.model_dump(exclude=parts)
    assert "root" not in yaml.safe_load((released / "study.yaml").read_text(encoding="utf-8"))["data"]


def test_a_release_needs_a_person_and_leaves_an_old_one_alone(run: Path, released: Path) -> None:
    with pytest.raises(ReleaseError, match="--approved-by is blank"):
        release(run, People(" ", "head", "why"), KEY, {})
    with pytest.raises(ReleaseError, match="exists already"):
        release(run, PEOPLE, KEY, {}, released)
    verify(released)
