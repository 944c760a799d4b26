"""The command: lines, exit code, and a sheet of what could be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedimaging.data.check_command import run_check
from fedimaging.errors import StudyError

from .making import dicom_slice, manifest, pictures


def test_good_and_bad_manifests_have_their_codes(tmp_path: Path) -> None:
    said: list[str] = []
    assert run_check(pictures(tmp_path), ["label"], True, 2, [], None, said.append) == 0
    assert any("0 errors" in line for line in said)
    (tmp_path / "1.png").unlink()
    said.clear()
    assert run_check(tmp_path / "manifest.csv", ["label"], True, 2, [], None, said.append) == 2
    assert said[0].startswith("error: line 3: image ")
    assert run_check(tmp_path / "none.csv", [], False, 2, [], tmp_path / "s.png", said.append) == 2
    assert not (tmp_path / "s.png").exists()


def test_the_sheet_shows_what_can_be_read(tmp_path: Path) -> None:
    path = pictures(tmp_path)
    (tmp_path / "1.png").write_bytes(b"broken")
    (tmp_path / "2_mask.png").write_bytes(b"broken")
    assert run_check(path, ["label"], False, 2, [], tmp_path / "out" / "sheet.png", print) == 2
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width == 3 * 132 + 4


def test_volumes_and_pictures_on_one_sheet(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    for i in range(3):
        dicom_slice(tmp_path / "series" / f"{i}.dcm", np.full((6, 4), i, np.uint16), height=5.0 * i)
    dicom_slice(tmp_path / "flat.dcm", np.eye(6, dtype=np.uint16))
    path = manifest(tmp_path, [{"image": name, "patient_id": name} for name in ("series", "flat.dcm")])
    assert run_check(path, [], False, 2, [], tmp_path / "sheet.png", print) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2 * 132 + 4


def test_nothing_readable_still_gives_a_report(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"broken")
    path = manifest(tmp_path, [{"image": "x.png", "patient_id": "p"}])
    assert run_check(path, [], False, 2, [], tmp_path / "sheet.png", print) == 2


def test_long_reports_are_cut(tmp_path: Path) -> None:
    path = manifest(tmp_path, [{"image": f"{i}.png", "patient_id": i} for i in range(300)])
    said: list[str] = []
    run_check(path, [], False, 2, [], None, said.append)
    assert len(said) == 203
    assert "300 errors" in said[-2]


def test_columns_are_renamed(tmp_path: Path) -> None:
    path = pictures(tmp_path)
    path.write_text(path.read_text().replace("patient_id", "case"))
    assert run_check(path, ["label"], False, 2, ["patient_id=case"], None, print) == 0
    with pytest.raises(StudyError, match="standard=column"):
        run_check(path, [], False, 2, ["patient_id"], None, print)
    with pytest.raises(StudyError, match="did you mean 'patient_id'"):
        run_check(path, [], False, 2, ["patient=case"], None, print)
