"""`fedimaging server run`: one study over real hospitals, from the first to the last round, into a run folder as a
simulation's. What the server does not know (patients, scans, what was spent) is not in it."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.errors import LinkDown, LinkError, RunError, StudyError, bad_value, unknown_name
from fedimaging.federated.deployed_grid import Deployment, RunLost, run_deployed
from fedimaging.federated.enrolment import gather
from fedimaging.federated.flower_http import ControlLine
from fedimaging.federated.rounds import Federation, ServerState, TooFewReplies, final_weights, first_state
from fedimaging.federated.server_app import build_server_app
from fedimaging.federated.timing import pace
from fedimaging.files import write_json
from fedimaging.results import RoundResult, SiteCalibration, SiteEvaluation
from fedimaging.runs import assemble
from fedimaging.runs.fairness_facts import fairness_facts
from fedimaging.runs.groups import check_public
from fedimaging.runs.live import LiveView
from fedimaging.runs.personal import personal_facts
from fedimaging.runs.run_dir import RunDir
from fedimaging.runs.serve import nodes_by_site
from fedimaging.runs.serve_report import server_report
from fedimaging.runs.server_folder import ServerFolder
from fedimaging.runs.site_privacy import private_means, site_privacy_facts
from fedimaging.runs.tempering import tempering_facts, write_calibration
from fedimaging.site.plan import inverse_noise, public_plan, update_noise
from fedimaging.site.simulated import workbench_of
from fedimaging.study.schema import Study
from fedimaging.training.workbench import Workbench

_REPLY_SLACK = 2**20  # bytes of a reply beside its update: names, metrics, noised totals
_COME_BACK_SECONDS = 60.0  # a server that was away for a while: so long its hospitals have to come back
_PASSING = frozenset({"no_reply", "stopping", "outside_hours", "disk_full"})  # not "error": a failure may have been charged


def run_study(
    folder: ServerFolder, study: Study, *, resume: bool, patience_seconds: float, view: LiveView
) -> Path:
    """Run a study over its hospitals; returns the path of report.json.

    Waits for the hospitals that the study names: for all of them, or once patience ends for as many as a round needs.
    Killed at any moment it goes on with `resume` after the last whole round. Errors: RunError, StudyError; LinkDown where
    no server runs.
    """
    check_deployable(study, folder)
    assemble.check_metric(study)
    run = RunDir(folder.path / "runs" / f"{study.name}-{study.fingerprint[:8]}")
    with run.held(study, resume=resume):
        if resume and run.finished:
            from fedimaging.runs.report import complete_page

            view.say(f"the run in {str(run.path)!r} is finished; nothing to do.")
            complete_page(run.path)
            return run.path / "report.json"
        return _Serving(folder, study, run, view, patience_seconds).go()


def check_deployable(study: Study, folder: ServerFolder) -> None:
    """Error: StudyError or RunError for a study that cannot run over these hospitals."""
    if study.hospitals.sites is None:
        raise StudyError(
            f"hospitals.by={study.hospitals.by!r} without sites simulates hospitals; a study for real ones has by: column and "
            "sites: [their names]."
        )
    registered, asked = folder.sites(), study.federation.sites_per_round or len(study.hospitals.training_sites)
    for name in study.hospitals.taking_part:
        if name not in registered:
            raise RunError(f"{unknown_name('hospitals.sites', name, registered)} Add it with `fedimaging server add-site`.")
    if study.federation.minimum_replies > min(asked, len(study.hospitals.training_sites)):
        rule = "is above the number of hospitals that train in a round"
        raise StudyError(bad_value("federation.minimum_replies", study.federation.minimum_replies, rule, "lower it"))
    check_public(study)
    if study.privacy is not None and study.privacy.secure_sum != "none":
        raise StudyError(f"privacy.secure_sum={study.privacy.secure_sum!r} is for simulations; real hospitals refuse it.")
    _public_weights(study, folder)
    _update_noise(study, folder)


def _public_weights(study: Study, folder: ServerFolder) -> dict[str, float]:
    if study.federation.weights == "uniform":
        return dict.fromkeys(study.hospitals.training_sites, 1.0)
    if study.federation.weights == "inverse_noise":
        return {name: inverse_noise(study, units) for name, units in _declared(study, folder, "weights=inverse_noise").items()}
    return {name: float(patients) for name, patients in _declared(study, folder, "weights=public_patients").items()}


def _update_noise(study: Study, folder: ServerFolder) -> dict[str, float]:
    """Of each hospital, for `federation.noise_limit`."""
    if study.federation.noise_limit is None or study.privacy is None:
        return {}
    declared = _declared(study, folder, "noise_limit")
    return {name: update_noise(study, public_plan(study, patients)) for name, patients in declared.items()}


def _declared(study: Study, folder: ServerFolder, needed_for: str) -> dict[str, int]:
    """The numbers of patients that the training hospitals declared. Errors: StudyError, RunError where they do not do."""
    of_records = study.privacy is not None and study.privacy.unit == "record" and needed_for != "weights=public_patients"
    if of_records:
        raise StudyError(f"federation.{needed_for} needs numbers of units, and hospitals declare patients, not records.")
    sites, names = folder.sites(), study.hospitals.training_sites
    silent = [name for name in names if sites[name].patients is None]
    if silent:
        raise RunError(
            f"federation.{needed_for}, but {', '.join(silent)} declared no number of patients; add it with "
            "`fedimaging server add-site NAME KEY --patients N`, or do without."
        )
    return {name: sites[name].patients or 0 for name in names}


@dataclass
class _Serving:
    """One `server run` of one study."""

    folder: ServerFolder
    study: Study
    run: RunDir
    view: LiveView
    patience_seconds: float
    began: float = field(default_factory=time.monotonic)
    told: set[str] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    joined: bool = False
    ended: tuple[np.ndarray, list[SiteEvaluation]] | None = None
    tempering: dict[str, Any] | None = None
    own: list[SiteEvaluation] = field(default_factory=list)

    def go(self) -> Path:
        bench = workbench_of(self.study, "cpu")
        self.run.write_study(self.study)
        facts = self._facts()
        self.folder.audit("run_began", study=self.study.fingerprint, name=self.study.name, rounds_done=len(self.run.rounds()))
        start = bench.start
        down_since = None
        while self.ended is None:
            state = self.run.load_state(first_state(self.study, start), self.study.federation.rounds)
            self.view.arm("federated", state.round)
            app = build_server_app(self._federation(bench), state, self._on_round, self._on_end, self._join,
                                   self._on_calibrated, self._on_personal)
            at = Deployment(self.folder.socket, self.folder.secret, self.folder.path, self.run.path / "flower_run")
            try:
                largest = 4 * bench.shared_size + _REPLY_SLACK
                run_deployed(app, at, largest_reply=largest, say=self.view.say, name_of=self._identify)
            except TooFewReplies as error:
                self._take_again(error)
            except (RunLost, LinkDown) as error:
                if isinstance(error, LinkDown) and not self.joined and down_since is None:
                    raise RunError(f"no server answers; start it with `fedimaging server start` first ({error})") from None
                down_since = down_since or time.monotonic()
                self._say_once(f"the server was away ({error}); going on after round {len(self.run.rounds())}")
                time.sleep(pace(time.monotonic() - down_since, least=0.5, most=10.0, share=0.2))
        self.run.save_weights(bench, self.ended[0])
        return self._finish(bench, facts)

    def _facts(self) -> dict[str, Any]:
        """When the run began: kept over a resume."""
        path = self.run.path / "run.json"
        if not path.exists():
            write_json(path, {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts

    def _federation(self, bench: Workbench) -> Federation:
        hospitals = self.study.hospitals
        return Federation(
            study=self.study, train_sites=tuple(hospitals.training_sites), evaluate_sites=tuple(hospitals.taking_part),
            public_weights=_public_weights(self.study, self.folder), model_fingerprint=bench.fingerprint,
            planned_epsilon=lambda site, round: math.nan,  # the hospitals' own: it follows from their numbers of patients
            progress=self._progress, total_metrics=assemble.total_metrics, identify=self._identify,
            maximum_update_norm=self.folder.settings.maximum_update_norm,
            mean_for=private_means(self.study, self.run.path, simulated=False),
            update_noise=_update_noise(self.study, self.folder),
        )

    def _identify(self, node_id: int) -> str | None:
        if node_id not in self.names:
            control = ControlLine(self.folder.socket)
            try:
                self.names = {node.node_id: name for name, node in nodes_by_site(self.folder, control.nodes()).items()}
            except LinkError:
                return None  # asked again at once by whoever waits for hospitals
            finally:
                control.close()
        return self.names.get(node_id)

    def _join(self, grid: Any, federation: Federation, nodes: Mapping[str, int]) -> dict[str, int]:
        patience = 0.0 if nodes else _COME_BACK_SECONDS if self.joined else self.patience_seconds
        enough = self.study.federation.minimum_replies
        found = gather(grid, federation, nodes, patience_seconds=patience, enough=enough)
        for site in sorted(found.keys() - nodes.keys()):
            self.folder.audit("enrolled", study=self.study.fingerprint, site=site)
        self.joined = True
        return found

    def _on_round(self, state: ServerState, result: RoundResult) -> None:
        self.run.append_round(result)
        self.run.save_state(state)
        self.folder.audit(
            "round", study=self.study.fingerprint, round=state.round, sites=list(result.sites), refused=dict(result.refused),
            norm=result.update_norm)
        self.view.round(result.as_json())
        self.told.clear()

    def _on_end(self, state: ServerState, evaluations: list[SiteEvaluation]) -> None:
        self.ended = (final_weights(state), evaluations)

    def _on_calibrated(self, released: list[SiteCalibration], refused: dict[str, str]) -> None:
        self.tempering = tempering_facts(self.study, released, refused)
        self.folder.audit("calibrated", study=self.study.fingerprint, sites=[one.site for one in released], refused=refused)
        self.view.say(self.tempering["words"])

    def _on_personal(self, evaluations: list[SiteEvaluation]) -> None:
        self.own = evaluations

    def _trained(self, evaluations: list[SiteEvaluation]) -> list[SiteEvaluation]:
        return [e for e in evaluations if e.site in self.study.hospitals.training_sites]

    def _take_again(self, error: TooFewReplies) -> None:
        """A round that failed because hospitals were away is taken again; one that they refuse is not."""
        self.folder.audit("round_failed", study=self.study.fingerprint, refused=dict(error.refused))
        if not _PASSING & set(error.refused.values()):
            raise error
        self.view.say(f"{error} Taking the round again.")

    def _progress(self, kind: str, facts: Mapping[str, object]) -> None:
        if kind == "waiting":
            self._say_once(_waiting_words(facts))
        elif kind == "not_enrolled":
            if self._say_once(f"{facts['site']} does not take part yet: {_REASONS.get(str(facts['reason']), facts['reason'])}"):
                self.folder.audit("not_enrolled", study=self.study.fingerprint, **facts)
        else:
            self.view.event(kind, facts)
            if kind == "refused":
                self.folder.audit("refused", study=self.study.fingerprint, **facts)

    def _say_once(self, text: str) -> bool:
        """Say what has not been said since the last round; True where it was said."""
        new = text not in self.told
        if new:
            self.told.add(text)
            self.view.say(text)
        return new

    def _finish(self, bench: Workbench, facts: Mapping[str, Any]) -> Path:
        assert self.ended is not None
        facts = {**facts, "declared_patients": {name: site.patients for name, site in self.folder.sites().items()}}
        tree = server_report(self.study, bench, self.run.rounds(), self.ended[1], facts, time.monotonic() - self.began)
        means = private_means(self.study, self.run.path, simulated=False)
        tree["fairness"] = fairness_facts(
            self.study, _public_weights(self.study, self.folder), self.run.rounds(), on_validation=None)
        tree["personalised"] = personal_facts(self.study, self._trained(self.ended[1]), self.own, [])
        tree["site_privacy"] = site_privacy_facts(self.study, means, len(self.study.hospitals.training_sites))
        tree["calibration"] = {"kind": self.study.task.kind, "tempering": self.tempering, "before": None, "after": None}
        write_calibration(self.run.path, self.tempering)
        self.folder.audit("run_finished", study=self.study.fingerprint, rounds=len(self.run.rounds()))  # twice after a kill here
        write_json(self.run.path / "report.json", tree)
        from fedimaging.runs.report import write_page

        write_page(self.run.path)
        return self.run.path / "report.json"


_REASONS = {
    "not_willing": "its people have not approved the study",
    "study_not_approved": "its people have not approved the study",
    "another_name": "it calls itself by another name than its key is registered for",
    "another_model": "it builds another model than the server; install the same version of fedimaging at both",
}


def _waiting_words(facts: Mapping[str, Any]) -> str:
    words = [f"{site} ({'not connected' if site in facts['away'] else 'connected'})" for site in facts["missing"]]
    return f"waiting for {', '.join(words)}"
