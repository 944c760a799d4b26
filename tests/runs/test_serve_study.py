"""What `server run` checks before it begins, and what its report holds; the run itself is in federated/test_deployment.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedimaging.errors import FedimagingError, RunError
from fedimaging.keys import make_key
from fedimaging.results import SiteEvaluation
from fedimaging.runs.live import LiveView
from fedimaging.runs.report import write_page
from fedimaging.runs.serve import as_lines, status
from fedimaging.runs.serve_report import server_report
from fedimaging.runs.serve_study import check_deployable, run_study
from fedimaging.runs.server_folder import ServerFolder, ServerSettings
from fedimaging.site.simulated import workbench_of
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
REAL = "hospitals.sites=[hospital_01,hospital_02]"


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    made = ServerFolder.create(tmp_path / "server", ServerSettings(host="127.0.0.1"))
    for name in ("hospital_01", "hospital_02"):
        make_key(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
        made.add_site(name, tmp_path / f"{name}.pub", 100 if name == "hospital_01" else None)
    return made


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "simulates hospitals"),
        (("hospitals.sites=[hospital_01,hospital_03]",), "hospital_03.*server add-site"),
        ((REAL, "federation.minimum_replies=3"), "minimum_replies=3"),
        ((REAL, "federation.minimum_replies=2", "federation.sites_per_round=1"), "minimum_replies=2"),
        ((REAL, "federation.weights=public_patients"), "hospital_02 declared no number"),
    ],
)
def test_a_study_that_cannot_run_here_is_refused(
    overrides: tuple[str, ...], words: str, folder: ServerFolder, tiny_study: MakeStudy
) -> None:
    with pytest.raises(FedimagingError, match=words):
        check_deployable(tiny_study(*overrides), folder)


# httpcore leaves the socket of a connection that failed to the garbage collector.
NO_SERVER = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@NO_SERVER
def test_without_a_server_the_remedy_is_said_and_no_run_is_begun_twice(folder: ServerFolder, tiny_study: MakeStudy) -> None:
    study = tiny_study(REAL)
    for resume in (False, True):
        with LiveView(2, quiet=True) as view, pytest.raises(RunError, match="fedimaging server start"):
            run_study(folder, study, resume=resume, patience_seconds=0.0, view=view)
    with LiveView(2, quiet=True) as view, pytest.raises(RunError, match="add --resume"):
        run_study(folder, study, resume=False, patience_seconds=0.0, view=view)


@NO_SERVER
def test_the_status_of_a_server_that_does_not_run(folder: ServerFolder) -> None:
    found = status(folder)
    assert not found.running
    assert [(site.name, site.online, site.patients) for site in found.sites] == [
        ("hospital_01", None, 100), ("hospital_02", None, None)]
    text = "\n".join(as_lines(found))
    assert "not running (fedimaging server start)" in text
    assert "hospital_01: unknown; key " in text
    assert "100 patients declared" in text


@pytest.mark.parametrize("private", [True, False])
def test_the_report_holds_what_the_server_knows_and_the_page_says_who_knows_the_rest(
    private: bool, tiny_study: MakeStudy, tmp_path: Path
) -> None:
    study = tiny_study(REAL, "hospitals.held_out=[hospital_02]", *([] if private else ["privacy=null"]))
    evaluations = [SiteEvaluation(name, 2, 0.5, n, {"auroc": value}) for name, n, value in (
        ("hospital_01", 30, 0.75), ("hospital_02", 10, 0.5))]
    rounds = [{"round": 1, "sites": [], "refused": {"hospital_01": "no_reply"}, "metrics": {}, "site_metrics": {},
               "epsilon": {}, "update_norm": 1.0, "seconds": {"training": 2.0, "evaluation": 1.0}, "bytes_per_site": 8}]
    tree = server_report(study, workbench_of(study, "cpu"), rounds, evaluations, {"created": "2026-11-23T00:00:00Z"}, 4.0)
    (tmp_path / "report.json").write_text(json.dumps(tree, allow_nan=False))
    one = tree["sites"]["hospital_01"]
    assert one == {"role": "train", "test_patients": 30, "privacy": None, "refused": {"1": "no_reply"}, "test": one["test"]}
    assert one["test"]["auroc"]["value"] == 0.75
    assert tree["sites"]["hospital_02"]["role"] == "held_out"
    assert (tree["test"]["auroc"]["n_patients"], tree["held_out"]["auroc"]["value"]) == (30, 0.5)
    assert not {"pictures", "data_fingerprint", "workers"} & tree.keys()
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert ("accounted for at the hospitals" in page) == private
    assert ("No privacy protection" in page) != private
    assert "Treat their patients as unprotected" not in page
