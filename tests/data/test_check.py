"""All that is wrong is told, row by row, and who is in the manifest is counted."""

from pathlib import Path

import numpy as np

from fedimaging.data.check import check_manifest

from .making import manifest, pictures, png


def test_a_good_manifest(tmp_path: Path) -> None:
    report = check_manifest(pictures(tmp_path, site=["a", "a", "b", "b"]), labels=["label"], needs_mask=True)
    assert report.ok
    assert (report.patients, report.scans) == (4, 4)
    assert report.shapes == {"1x6x8": 4}
    assert report.sites["a"].patients == 2
    assert report.sites["a"].masks == 2
    assert report.sites["b"].labels == {"label": {"0": 1, "1": 1}}
    assert any("only 2 patients" in problem.text for problem in report.problems)


def test_every_fault_is_told_once_and_in_order(tmp_path: Path) -> None:
    path = pictures(
        tmp_path,
        n=7,
        label=[0, 1, 9, 1, 0, 1, 0],
        image=["0.png", "gone.png", "2.png", "3.png", "4.png", "5.png", "6.png"],
        patient_id=["p0", "p1", "p2", "p3", "p4", "p5", "p0"],
        site=["a", "a", "a", "a", "a", "a", "b"],
    )
    (tmp_path / "3.png").write_bytes(b"broken")
    png(tmp_path / "4_mask.png", np.zeros((2, 2), np.uint8))
    png(tmp_path / "5_mask.png", np.full((6, 8), 5, np.uint8))
    report = check_manifest(path, labels=["label"], needs_mask=True)
    assert not report.ok
    errors = [(problem.line, problem.text) for problem in report.problems if not problem.warning]
    assert [line for line, _ in errors] == [3, 4, 5, 6, 7, 8]
    for (_, text), told in zip(
        errors, ["gone.png is missing", "out of range", "cannot be read", "has shape 2x2", "value 5", "has site 'b' here"],
        strict=True,
    ):  # fmt: skip
        assert told in text
    assert "7 scans of 6 patients, 6 errors" in "\n".join(report.lines())


def test_warnings_do_not_fail(tmp_path: Path) -> None:
    path = pictures(
        tmp_path, site=["a", "a", "b", "b"], label=[0, 0, 0, 1], sex=["F", "M", "F", "F"], patient_id=["p", "p", "q", "r"],
        split=["train"] * 4,
    )  # fmt: skip
    png(tmp_path / "3.png", np.full((6, 8), 20, np.uint8))  # as 2.png, of another patient
    report = check_manifest(path, labels=["label"])
    told = "\n".join(report.lines())
    assert report.ok
    for text in ("'a' has only label=0", "has sex 'M' here but 'F'", "no test patient", "same pixels as line 4"):
        assert text in told


def test_a_file_that_is_no_manifest_is_a_report_too(tmp_path: Path) -> None:
    report = check_manifest(tmp_path / "none.csv")
    assert not report.ok
    assert "is missing" in report.lines()[0]
    (tmp_path / "m.csv").write_text("image,patient\nx.png,1\n")
    assert "did you mean 'patient'" in check_manifest(tmp_path / "m.csv").problems[0].text


def test_without_a_site_column_there_is_one_count(tmp_path: Path) -> None:
    report = check_manifest(
        manifest(tmp_path, [{"image": png(tmp_path / "x.png", np.eye(4, dtype=np.uint8)), "patient_id": 1}])
    )
    assert list(report.sites) == [""]
    assert "(no site column): 1 patients" in "\n".join(report.lines())


def test_the_real_sites(shared_data: Path) -> None:
    report = check_manifest(shared_data / "cxr_multisite" / "metadata.csv", labels=["ap_view"])
    assert report.ok
    assert {name: (counts.scans, counts.patients) for name, counts in report.sites.items()} == {
        "DE-MHH": (243, 71), "ES": (44, 18), "ASIA-MEA": (33, 22), "GB": (27, 12), "EU-OTHER": (21, 13), "IT": (21, 17),
        "AU": (20, 13), "AMERICAS": (14, 9),
    }  # fmt: skip
    assert sum(counts.masks for counts in report.sites.values()) == 120
    assert any("'AU' has only ap_view=0" in problem.text for problem in report.problems)
