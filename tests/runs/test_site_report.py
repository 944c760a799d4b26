"""The privacy officer's page: complete in one file, honest about what is not in order, and safe to open."""

import re
from pathlib import Path

import pytest

from fedimaging.errors import RunError, SiteRefusal
from fedimaging.runs.site_report import write_site_page
from fedimaging.runs.time_chart import Course, time_chart
from fedimaging.site import approvals
from fedimaging.site.folder import SiteFolder
from fedimaging.site.hospital import open_hospital_site
from fedimaging.site.proposal import approve, propose
from fedimaging.site.site import TrainInstruction
from fedimaging.study.load import load
from tests.site.making import hospital, pictures, set_policy, study_file


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    """Two rounds trained, one request refused."""
    study = study_file(tmp_path / "study.yaml")
    made = hospital(tmp_path / "north", pictures(tmp_path / "data"), study, release_evaluation="metrics")
    site = open_hospital_site(made, load(study).fingerprint)
    for round in (1, 2):
        site.train(TrainInstruction(site.fingerprint, round, site.bench.initial))
    site.evaluate(TrainInstruction(site.fingerprint, 2, site.bench.initial), final=True)
    with pytest.raises(SiteRefusal):
        open_hospital_site(made, "f" * 64)
    return made


def words(folder: SiteFolder) -> str:
    """The page's text."""
    page = write_site_page(folder).read_text()
    return re.sub(r"\s+", " ", re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL))


def test_the_page_says_what_was_approved_ran_was_spent_and_left(folder: SiteFolder) -> None:
    text = words(folder)
    assert "Privacy record of north" in text
    assert "1 study may train here." in text
    assert "2 model updates and 1 evaluation left this hospital" in text
    assert "Dr. A" in text
    assert "each patient counts as one; noise multiplier 1, clipped at 1; 2 steps a round, at most 3 rounds" in text
    assert "evaluation: exact metrics" in text
    assert "What left under differential privacy together lets nobody learn more about any one patient than" in text
    assert "1 evaluation without noise is not counted in it." in text
    assert "concluded from what left with noise changes by a factor" in text
    assert "Test patients: exact metrics of them, and how many there are, leave without noise." in text
    assert "a study that is not approved here, or not any more" in text
    assert "every entry checked" in text
    assert "NOT IN ORDER" not in text
    assert "Test mode" not in text


def test_the_page_needs_no_network_and_names_no_patient(folder: SiteFolder) -> None:
    folder.opt_out_file.write_text("SECRET-ID\n")
    page = write_site_page(folder).read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert "SECRET-ID" not in page
    assert "1 patient id on the list" in page


def test_a_new_folder_has_a_page_too(tmp_path: Path) -> None:
    text = words(hospital(tmp_path / "north", tmp_path))
    assert "Nothing has left this hospital so far." in text
    assert "Nobody has approved a study so far; nothing can train here." in text


def test_what_is_not_in_order_stands_at_the_top(folder: SiteFolder) -> None:
    folder.audit_file.write_text(folder.audit_file.read_text().replace('"round": 1', '"round": 3', 1))
    folder.ledger_head.unlink()
    text = words(folder)
    assert "The ledger is not in order" in text
    assert "The audit log is not in order" in text
    assert "ALTERED" in text
    assert "nothing can be said about what was spent" in text


def test_what_protects_less_stands_at_the_top(folder: SiteFolder, tmp_path: Path) -> None:
    set_policy(folder, allow_simulated_noise=True, without_privacy=True, in_total={"epsilon": 4.0, "delta": 1e-4})
    plain = study_file(tmp_path / "plain.yaml", privacy=None)
    approve(folder, propose(folder, plain), who="Dr. B", why="public data")
    site = open_hospital_site(folder, load(plain).fingerprint)
    site.train(TrainInstruction(site.fingerprint, 1, site.bench.initial))
    text = words(folder)
    told = ("A study trained without differential privacy", "Test mode: simulated noise", "Little is left of the budget in total")
    for band in told:
        assert band in text
    assert "Not the patients of a study that trained without differential privacy" in text


def test_words_of_people_are_text_and_not_markup(folder: SiteFolder) -> None:
    [approval] = approvals.newest(folder).values()
    approvals.revoke(folder, approval.study, who="<script>alert(1)</script>", why="<b>x</b>")
    page = write_site_page(folder).read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_page_that_cannot_be_written_is_told(folder: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_site_page(folder, tmp_path / "file" / "page.html")


def test_a_course_steps_up_at_its_moments() -> None:
    day = 86400.0
    chart = time_chart("Epsilon", [Course("in total", [(0, 1.0), (10 * day, 2.0)], "main s0", 4.0)])
    [points] = re.findall(r'points="([^"]*)"', chart)
    assert points == "0.0,190.0 0.0,142.5 1000.0,142.5 1000.0,95.0"
    assert 'aria-label="Epsilon. in total: 2 of 4 on 1970-01-11."' in chart
    assert [re.sub("<[^>]*>", "", text) for text in re.findall(r'<text class="tick"[^>]*>[^<]*', chart)][-3:] == [
        "1970-01-01", "1970-01-06", "1970-01-11"]
    assert not time_chart("Epsilon", [Course("in total", [], "main", 1.0)])
