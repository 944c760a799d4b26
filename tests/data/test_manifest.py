"""The manifest's columns, and every fault that shows without decoding."""

from pathlib import Path

import pytest

from fedimaging.data.manifest import kept_columns, labels_of, problems_of, raise_first, read_table, split_of
from fedimaging.errors import DataError

from .making import pictures


def texts(path: Path, labels: tuple[str, ...] = ("label",), classes: int = 2, needs_mask: bool = False) -> list[str]:
    table = read_table(path, {}, labels, needs_mask=needs_mask)
    return [f"{p.line}: {p.text}" for p in problems_of(table, labels, classes, False, needs_mask=needs_mask)]


def test_a_good_manifest_has_no_problem_and_keeps_its_columns(tmp_path: Path) -> None:
    path = pictures(tmp_path, site=["a", "a", "b", "b"], camera=["x", "", "y", "y"])
    assert texts(path, needs_mask=True) == []
    table = read_table(path, {}, ["label"])
    kept = kept_columns(table)
    assert sorted(kept) == ["camera", "label", "site"]
    assert kept["camera"].tolist() == ["x", "", "y", "y"]
    labels = labels_of(table, ["label"])
    assert labels is not None
    assert labels.tolist() == [[0], [1], [0], [1]]
    assert split_of(table) is None


def test_columns_of_another_name(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("image,label,case_id\na.nii,a_mask.nii,c1\n")
    table = read_table(path, {"mask": "label", "patient_id": "case_id"}, needs_mask=True)
    assert table.file("mask", 0) == tmp_path / "a_mask.nii"
    assert table.values["patient_id"] == ["c1"]
    assert kept_columns(table) == {}
    with pytest.raises(DataError, match="column='case' is not known; did you mean 'case_id'"):
        read_table(path, {"patient_id": "case"})


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("image,patientid,lable\na.png,p,0\n")
    with pytest.raises(DataError, match=r"did you mean 'patientid'.*Privacy is per patient"):
        read_table(path, {}, ["label"])
    with pytest.raises(DataError, match="did you mean 'lable'"):
        read_table(path, {"patient_id": "patientid"}, ["label"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"image,patient_id\n", "header but no row"),
        (b"image,patient_id\n\n ,\n", "header but no row"),
        (b"image,image,patient_id\na,b,c\n", "more than one column 'image'"),
        (b"image,patient_id\n\xff\xfe,1\n", "UTF-8 CSV"),
        (b'image,patient_id\n"a,b\n', "UTF-8 CSV"),
    ],
)
def test_files_that_are_no_manifest_are_told(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_table(tmp_path / "m.csv", {})


def test_a_missing_manifest_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest .*none\.csv is missing"):
        read_table(tmp_path / "none.csv", {})
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path, {})


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_a_mark_and_spaces(tmp_path: Path, separator: str) -> None:
    text = "image, patient_id,site\na.png,p 1, x\n".replace(",", separator)
    (tmp_path / "m.csv").write_text("\ufeff" + text, encoding="utf-8")
    table = read_table(tmp_path / "m.csv", {})
    assert table.values["patient_id"] == ["p 1"]
    assert table.values["site"] == ["x"]


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('image,patient_id,note\n\na.png,p,"two\nlines"\nb.png,,x\n')
    assert [text for text in texts(tmp_path / "m.csv", labels=()) if "blank" in text] == [
        "5: patient_id is blank; every row needs one here."
    ]


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("image", ["0.png", "1.png", "gone.png", "3.png"], "gone.png is missing"),
        ("mask", ["0_mask.png", "1_mask.png", "", "3_mask.png"], "mask is blank"),
        ("mask", ["0_mask.png", "1_mask.png", "x.png", "3_mask.png"], "x.png is missing"),
        ("patient_id", ["a", "b", "", "d"], "patient_id is blank"),
        ("label", [0, 1, 2, 1], "label='2' is out of range; allowed are 0 to 1"),
        ("label", [0, 1, -1, 1], "label='-1' is out of range"),
        ("label", [0, 1, "ill", 1], "label='ill' is not a whole number"),
        ("label", [0, 1, "", 1], "label='' is not a whole number"),
        ("label", [0, 1, 0.5, 1], "label='0.5' is not a whole number"),
        ("label", [0, 1, "nan", 1], "label='nan' is not a whole number"),
        ("split", ["train", "test", "dev", "val"], "split='dev' is not train"),
        ("split", ["train", "test", "", "val"], "split='' is not train"),
    ],
)
def test_every_fault_of_a_row_names_its_line(tmp_path: Path, column: str, values: list[object], told: str) -> None:
    found = texts(pictures(tmp_path, **{column: values}), needs_mask=True)
    assert len(found) == 1
    assert found[0].startswith("4: ")
    assert told in found[0]


def test_whole_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    assert texts(pictures(tmp_path, label=["0.0", "1.", "+1", "01"])) == []


def test_a_patient_in_two_splits_is_told(tmp_path: Path) -> None:
    path = pictures(tmp_path, patient_id=["a", "b", "a", "b"], split=["train", "test", "val", "Test"])
    assert texts(path) == [
        "4: patient 'a' has split 'validation' here but 'train' on line 2; a patient's scans belong in one split."
    ]


def test_one_image_under_two_patients_is_told(tmp_path: Path) -> None:
    path = pictures(tmp_path, image=["0.png", "1.png", "0.png", "3.png"])
    assert "image 0.png is patient 'p2' here but 'p0' on line 2" in texts(path)[0]


def test_rows_of_another_length_are_told(tmp_path: Path) -> None:
    path = pictures(tmp_path)
    path.write_text(path.read_text() + "0.png,0_mask.png,p0\n0.png,0_mask.png,p0,0,extra\n")
    assert [text.split(";")[0] for text in texts(path)[:2]] == [
        "6: has 3 cells but the header 4",
        "7: has 5 cells but the header 4",
    ]


def test_the_first_error_is_raised_and_the_rest_counted(tmp_path: Path) -> None:
    table = read_table(pictures(tmp_path, label=[5, 6, 0, 7]), {}, ["label"])
    with pytest.raises(DataError, match=r"line 2: label='5' .*\(2 more; `fedimaging data check` lists all\)"):
        raise_first(table, problems_of(table, ["label"], 2, False, needs_mask=False))


def test_rows_may_be_dropped_with_all_their_faults(tmp_path: Path) -> None:
    path = pictures(tmp_path, label=[0, "x", 1, 1], image=["0.png", "gone.png", "2.png", "3.png"])
    with path.open("a") as file:
        file.write("short,row\n")
    table = read_table(path, {}, ["label"], keep=lambda columns: [p in ("p0", "p3") for p in columns["patient_id"]])
    assert (len(table), table.lines, table.values["image"]) == (2, [2, 5], ["0.png", "3.png"])
    assert list(problems_of(table, ["label"], 2, False, needs_mask=True)) == []
