"""What `server run` checks before it begins, and what its report holds; the run itself is in federated/test_deployment.py."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from safetensors.numpy import load_file

from fedimaging.errors import FedimagingError, RunError, SiteRefusal
from fedimaging.federated.client_app import build_client_app
from fedimaging.federated.deployed_grid import Deployment, RunLost
from fedimaging.federated.flower_internals import take_server_identity
from fedimaging.federated.in_process import InProcessGrid
from fedimaging.keys import make_key
from fedimaging.results import SiteEvaluation
from fedimaging.runs import hospitals, serve_study
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.report import write_page
from fedimaging.runs.serve import as_lines, status
from fedimaging.runs.serve_report import server_report
from fedimaging.runs.serve_study import check_deployable, run_study
from fedimaging.runs.server_folder import ServerFolder, ServerSettings
from fedimaging.runs.simulate import simulate
from fedimaging.site.audit_log import read
from fedimaging.site.simulated import open_simulated_site, workbench_of
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
        ((REAL, "federation.noise_limit=0.1"), "noise_limit, but hospital_02 declared no number"),
        ((REAL, "federation.noise_limit=0.1", "privacy.unit=record"), "noise_limit needs numbers of units"),
    ],
)
def test_a_study_that_cannot_run_here_is_refused(
    overrides: tuple[str, ...], words: str, folder: ServerFolder, tiny_study: MakeStudy
) -> None:
    with pytest.raises(FedimagingError, match=words):
        check_deployable(tiny_study(*overrides), folder)


def test_without_a_server_the_remedy_is_said_and_no_run_is_begun_twice(folder: ServerFolder, tiny_study: MakeStudy) -> None:
    study = tiny_study(REAL)
    for resume in (False, True):
        with LiveView(2, quiet=True) as view, pytest.raises(RunError, match="fedimaging server start"):
            run_study(folder, study, resume=resume, patience_seconds=0.0, view=view)
    with LiveView(2, quiet=True) as view, pytest.raises(RunError, match="add --resume"):
        run_study(folder, study, resume=False, patience_seconds=0.0, view=view)


def _carried(
    study: Study, simulated: Path, monkeypatch: pytest.MonkeyPatch, *faults: Callable[[Message], None]
) -> None:
    """Carry the server's app in this process to the hospitals of a simulation; fault k meets the messages of attempt k."""
    attempts = iter(faults)
    client = build_client_app(lambda context, _: open_simulated_site(simulated, int(context.node_config["partition-id"])))

    def run(
        app: Any, at: Deployment, *, largest_reply: int, say: Callable[[str], None], name_of: Callable[[int], str | None]
    ) -> None:
        assert name_of(2) == "hospital_02"
        fault = next(attempts, None)

        def drop(message: Message) -> bool:
            if fault is not None:
                fault(message)
            return fault is not None and message.metadata.message_type == "train"

        take_server_identity(1)
        with InProcessGrid(client, 3, fault=drop) as grid:
            app(grid, Context(1, 1, node_config={}, state=RecordDict(), run_config={}))

    monkeypatch.setattr(serve_study, "run_deployed", run)
    monkeypatch.setattr(serve_study, "pace", lambda *_, **__: 0.0)
    monkeypatch.setattr(serve_study._Serving, "_identify", lambda self, node: f"hospital_0{node}")


def test_a_run_goes_on_after_a_lost_server_and_a_failed_round_and_ends_with_a_simulations_weights(
    folder: ServerFolder, tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "c.key", tmp_path / "c.pub")
    folder.add_site("hospital_03", tmp_path / "c.pub", None)
    study = tiny_study("hospitals.sites=[hospital_01,hospital_02,hospital_03]", "privacy.engine=vmap", "federation.rounds=3")
    with LiveView(3, quiet=True) as view:
        simulate(study, tmp_path / "plain", Options(report=False, workers=1), view)
    hospitals.make_federation(study, hospitals.load_data(study), tmp_path / "sites", "cpu").save()

    def lose(message: Message) -> None:
        if message.metadata.message_type == "evaluate":
            raise RunLost("the server forgot this run")

    def lose_nothing(message: Message) -> None:
        """Training messages are dropped: nobody answers in time."""

    _carried(study, tmp_path / "sites", monkeypatch, lose_nothing, lose)
    said = io.StringIO()
    with LiveView(3, out=said) as view:
        path = run_study(folder, study, resume=False, patience_seconds=0.0, view=view)
    assert "Taking the round again" in said.getvalue()
    real, simulated = (load_file(run / "weights.safetensors") for run in (path.parent, tmp_path / "plain"))
    for name, array in simulated.items():
        np.testing.assert_array_equal(real[name], array)
    events = [event["event"] for event in read(folder.path / "audit.jsonl")]
    assert events.count("round") == 3
    assert events.count("round_failed") == 2
    assert events[-1] == "run_finished"
    page = path.with_name("report.html")
    page.unlink()
    with LiveView(3, out=said) as view:  # again, and nothing more is done but for the page
        assert run_study(folder, study, resume=True, patience_seconds=0.0, view=view) == path
    assert page.exists()
    assert [row[1] for row in status(folder).runs] == ["finished after 3 rounds"]


def test_a_round_that_the_hospitals_refuse_ends_the_run(
    folder: ServerFolder, tiny_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(REAL, "privacy.engine=vmap", "policy.minimum_noise_multiplier=0")
    hospitals.make_federation(study, hospitals.load_data(study), tmp_path / "sites", "cpu").save()
    monkeypatch.setattr("fedimaging.site.site.Site.train", lambda *_: (_ for _ in ()).throw(SiteRefusal("against_policy")))
    _carried(study, tmp_path / "sites", monkeypatch)
    with LiveView(2, quiet=True) as view, pytest.raises(RunError, match="hospital_01: against_policy"):
        run_study(folder, study, resume=False, patience_seconds=0.0, view=view)


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
    tree = server_report(study, workbench_of(study, "cpu"), rounds, evaluations, {
        "created": "2026-11-23T00:00:00Z", "declared_patients": {"hospital_01": 71}}, 4.0)
    (tmp_path / "report.json").write_text(json.dumps(tree, allow_nan=False))
    one = tree["sites"]["hospital_01"]
    assert one == {"role": "train", "declared_patients": 71, "test_patients": 30, "privacy": None, "refused": {"1": "no_reply"},
                   "test": one["test"]}
    assert one["test"]["auroc"]["value"] == 0.75
    assert tree["sites"]["hospital_02"]["role"] == "held_out"
    assert (tree["test"]["auroc"]["n_patients"], tree["held_out"]["auroc"]["value"]) == (30, 0.5)
    assert not {"pictures", "data_fingerprint", "workers"} & tree.keys()
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert ("accounted for at the hospitals" in page) == private
    assert ("No privacy protection" in page) != private
    assert ("in its own ledger" in page) == private
    assert "71 declared" in page
    assert "Treat their patients as unprotected" not in page


def test_groups_of_real_hospitals_are_what_their_policies_released_and_no_more(tiny_study: MakeStudy, tmp_path: Path) -> None:
    study = tiny_study("hospitals.sites=[hospital_01,hospital_02,hospital_03]", "evaluation.groups=[sex]", "privacy=null")
    some = np.array([[20, 0.9], [np.nan, np.nan], [np.nan, np.nan]], np.float32)
    more = np.array([[60, 0.7], [30, 0.6], [np.nan, np.nan]], np.float32)
    lies = np.full((2, 2), 99, np.float32)  # of no shape that a hospital of this study can send
    released = {"hospital_01": some, "hospital_02": more, "hospital_03": lies}
    evaluations = [SiteEvaluation(name, 2, 0.5, 100, {"auroc": 0.8}, groups={"by.sex": one}) for name, one in released.items()]
    tree = server_report(study, workbench_of(study, "cpu"), [], evaluations, {"created": ""}, 1.0)
    sex = tree["groups"]["sex"]
    assert sex["F"]["auroc"] == {"value": pytest.approx(0.75), "low": None, "high": None, "n_patients": 80}
    assert sex["M"]["auroc"]["n_patients"] == 30
    assert tree["group_gaps"]["sex"]["p_value"] is None
    assert (tree["worst_group"]["group"], tree["worst_group"]["compared"]) == ("M", 2)
    (tmp_path / "report.json").write_text(json.dumps(tree, allow_nan=False))
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert "They follow from what each hospital’s own policy releases of groups." in page
    silent = [SiteEvaluation("hospital_01", 2, 0.5, 100, {"auroc": 0.8})]
    assert server_report(study, workbench_of(study, "cpu"), [], silent, {"created": ""}, 1.0)["groups"] == {}


def test_real_hospitals_must_know_the_groups_beforehand(folder: ServerFolder, tiny_study: MakeStudy) -> None:
    with pytest.raises(FedimagingError, match="names 'view', whose values hospitals cannot know"):
        check_deployable(tiny_study(REAL, "evaluation.groups=[view]"), folder)
    check_deployable(tiny_study(REAL, "evaluation.groups=[view]", "evaluation.group_values={view: [AP, PA]}"), folder)
