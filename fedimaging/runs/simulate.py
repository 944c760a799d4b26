"""`fedimaging simulate`: a whole federation on one machine, from study to report."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.aggregation.mean import StreamingMean
from fedimaging.data.dataset import Dataset
from fedimaging.errors import StudyError
from fedimaging.federated.client_app import build_client_app
from fedimaging.federated.local_only import LocalModel, build_local_only_app
from fedimaging.federated.rounds import Federation, ServerState, final_weights, first_state
from fedimaging.federated.server_app import build_server_app
from fedimaging.federated.site_privacy import PrivateMeans
from fedimaging.files import write_json
from fedimaging.privacy.accounting import bound_for
from fedimaging.privacy.budget import Budget
from fedimaging.results import RoundResult, SiteCalibration, SiteEvaluation
from fedimaging.runs import assemble, groups, hospitals, machine
from fedimaging.runs.beyond import evaluation_blocks
from fedimaging.runs.calibration_tables import calibration_block
from fedimaging.runs.fairness_facts import fairness_facts
from fedimaging.runs.leave_one_out import LeftOut
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.personal import personal_facts
from fedimaging.runs.run_dir import RunDir
from fedimaging.runs.site_privacy import private_means, site_privacy_facts
from fedimaging.runs.tempering import check_tempering, tempering_facts, write_calibration
from fedimaging.runs.track import Tracker, check_tracker, open_tracker
from fedimaging.site.simulated import SimulatedFederation, open_simulated_site, shared_workbench
from fedimaging.study.schema import Study
from fedimaging.training.workbench import Workbench, resolve_device


@dataclass
class _Run:
    study: Study
    options: Options
    folder: RunDir
    view: LiveView
    dataset: Dataset
    federation: SimulatedFederation
    bench: Workbench
    workers: int
    facts: dict[str, Any]
    clock: dict[str, float] = field(default_factory=dict)


@dataclass
class _Arm:
    """One trained arm: its final shared weights and what every hospital says of them; `own`: of models of their own."""

    weights: np.ndarray
    evaluations: list[SiteEvaluation]
    tempering: dict[str, Any] | None = None
    own: list[SiteEvaluation] = field(default_factory=list)


def simulate(study: Study, out: Path, options: Options, view: LiveView) -> Path:
    """Run the study in folder `out`; returns the path of report.json.

    A killed run goes on with `resume` from its last whole round, and ends with the same weights bit for bit (same
    workers). Errors: any FedimagingError; what was finished stays in the folder.
    """
    began = time.monotonic()
    check_tracker(options.track)
    assemble.check_metric(study)
    if options.ray_address is not None:
        from fedimaging.federated.ray_engine import check_cluster

        check_cluster(options.ray_address)
    folder = RunDir(out.resolve())
    with folder.held(study, resume=options.resume):
        if options.resume and folder.finished and not _more_is_asked(folder, options):
            view.say(f"the run in {str(out)!r} is finished; nothing to do.")
            if options.report:
                from fedimaging.runs.report import complete_page

                complete_page(folder.path)
            return folder.path / "report.json"
        run = _prepare(study, options, folder, view)
        run.clock["start"] = time.monotonic() - began
        view.say(_first_words(run))
        federated = _train(run, run.federation, "federated", open_tracker(options.track, folder.path, study))
        baselines, alone = _baselines(run) if options.baselines else ({}, [])
        blocks = {"baselines": baselines, "personalised": _personalised(run, federated, alone)}
        left_out = _leave_one_out(run) if options.leave_one_out else []
        run.clock["total"] = time.monotonic() - began
        return _finish(run, federated, blocks, left_out)


def _more_is_asked(folder: RunDir, options: Options) -> bool:
    """A finished run is taken up again for what was not asked before."""
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    return (options.baselines and not report.get("baselines")) or (options.leave_one_out and not report.get("leave_one_out"))


def _prepare(study: Study, options: Options, folder: RunDir, view: LiveView) -> _Run:
    dataset = hospitals.load_data(study)
    groups.check_groups(study, dataset)
    device = str(resolve_device(study.runtime.device))
    federation = hospitals.make_federation(study, dataset, folder.path, device)
    check_tempering(study, federation)
    bench = shared_workbench(study, device)
    for warning in hospitals.warnings_of(federation, dataset):
        view.warn(warning)
    folder.write_study(study)  # first of all files: whatever is interrupted from here on, --resume knows the folder
    facts = folder.decided(dataset.fingerprint)
    if not facts:
        federation.save()
        facts = _decide(study, options, federation) | {"data_fingerprint": dataset.fingerprint}
    plans = {name: replace(plan, engine=facts["engine"]) for name, plan in federation.plans.items()}
    federation = replace(federation, plans=plans, memory_format=facts["memory_format"])
    federation.save()
    write_json(folder.path / "run.json", facts)
    workers = int(facts["workers"])
    return _Run(study, options, folder, view, dataset, federation, bench, workers, facts)


def _decide(study: Study, options: Options, federation: SimulatedFederation) -> dict[str, Any]:
    """Engine, number of workers, layout in memory: measured once on this machine, so that the same study run again gives
    the same bits, and recorded in the run."""
    sizes = {name: int((federation.train_site == federation.names.index(name)).sum()) for name in federation.train_names}
    site = open_simulated_site(federation.folder, federation.names.index(max(sizes, key=lambda name: sizes[name])))
    wanted = options.workers if options.workers != "auto" else study.runtime.workers

    def measure() -> dict[str, Any]:
        workers, why = (int(wanted), "as asked") if wanted != "auto" else machine.choose_workers(site, sizes)
        chosen = {"workers": workers, "workers_reason": why, **machine.choose_engine(site, workers)}
        return chosen | machine.choose_memory_format(site, workers)

    parts = study.model_dump(
        mode="json", include={"model", "task", "training", "privacy"},
        exclude={"privacy": {"target_epsilon", "noise_multiplier", "delta"}},  # the time of a step does not hang on its noise
    )
    chosen = machine.remembered([parts, study.data.image_size, study.data.channels, sizes, wanted, federation.device], measure)
    return {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **chosen}


def _train(run: _Run, federation: SimulatedFederation, label: str, tracker: Tracker | None = None) -> _Arm:
    """Train one federation to its end, from its last checkpoint; the server's side of a run."""
    folder = RunDir(federation.folder)
    federation.save()
    state = folder.load_state(first_state(run.study, run.bench.start), run.study.federation.rounds)
    run.view.arm(label, state.round)
    ends: list[_Arm] = []
    tempering: list[dict[str, Any]] = []
    own: list[SiteEvaluation] = []

    def on_round(state: ServerState, result: RoundResult) -> None:
        folder.append_round(result)
        folder.save_state(state)
        run.view.round(result.as_json())
        if tracker is not None:
            tracker.round(result)

    def on_end(state: ServerState, evaluations: list[SiteEvaluation]) -> None:
        ends.append(_Arm(final_weights(state), evaluations, tempering[-1] if tempering else None, own))

    def on_calibrated(released: list[SiteCalibration], refused: dict[str, str]) -> None:
        tempering.append(tempering_facts(run.study, released, refused))

    calibrate, personal = (on_calibrated, own.extend) if federation.arm == "federated" else (None, None)
    app = build_server_app(
        _public(run, federation), state, on_round, on_end, on_calibrated=calibrate, on_personal=personal)
    _carry(run, app, federation)
    folder.save_weights(run.bench, ends[0].weights)
    if tracker is not None:
        tracker.close()
    return ends[0]


def _carry(run: _Run, server_app: Any, federation: SimulatedFederation) -> None:
    """Drive the apps with the carrier that was asked for."""
    folder, nodes = federation.folder, len(federation.names)
    client_app = build_client_app(lambda context, _: open_simulated_site(folder, int(context.node_config["partition-id"])))
    carrier = run.options.carrier if run.options.carrier != "in_process" else run.study.runtime.carrier
    if carrier == "ray":
        from fedimaging.federated.ray_engine import run_on_ray

        run_on_ray(server_app, client_app, nodes, workers=run.workers, address=run.options.ray_address)
    else:
        from fedimaging.federated.in_process import run_in_process

        run_in_process(server_app, client_app, nodes, workers=min(run.workers, nodes))


def _public(run: _Run, federation: SimulatedFederation) -> Federation:
    """What the server knows."""
    return Federation(
        study=run.study, train_sites=federation.train_names, evaluate_sites=federation.test_names,
        public_weights=hospitals.public_weights(federation, run.dataset), model_fingerprint=run.bench.fingerprint,
        planned_epsilon=_planned(federation), progress=run.view.event, total_metrics=assemble.total_metrics,
        update_noise=hospitals.public_noise(federation),
        mean_for=_means(run, federation) if federation.is_federation else lambda round, asked: StreamingMean(),
    )


def _means(run: _Run, federation: SimulatedFederation) -> PrivateMeans | None:
    return private_means(run.study, federation.folder, simulated=True, arm=federation.arm)


def _planned(federation: SimulatedFederation) -> Callable[[str, int], float]:
    """Site and round -> an upper bound (PLD on a coarse grid) of what the public plan has spent; NaN without privacy."""

    def planned(site: str, rounds: int) -> float:
        plan = federation.plans.get(site)
        if plan is None:
            return float("nan")
        anything = Budget(math.inf, plan.delta)  # any bound satisfies it, so the quick one is given
        return bound_for(anything)(hospitals.planned_charges(federation.study, plan, rounds), plan.delta)

    return planned


def _baselines(run: _Run) -> tuple[dict[str, Any], list[SiteEvaluation]]:
    """Their tables, and what each hospital's model that it trained alone gives at home."""
    began = time.monotonic()
    pooled = _train(run, hospitals.pooled(run.federation, run.dataset), "pooled")
    held_out = frozenset(run.study.hospitals.held_out)
    result: dict[str, Any] = {"pooled": _tables(run, pooled.evaluations)}
    models = _local_models(run)
    own = [e for model in models for e in model.evaluations if e.site == model.site]
    result["local_only"] = assemble.local_only_tables(run.study, models, held_out) | _group_tables(run, own)
    run.clock["baselines"] = time.monotonic() - began
    return result, own


def _personalised(run: _Run, federated: _Arm, alone: list[SiteEvaluation]) -> dict[str, Any] | None:
    """What own models give; where layers stay at the hospitals, with a run in which all travel beside it (`--baselines`)."""
    trained = set(run.federation.train_names)
    here = [e for e in federated.evaluations if e.site in trained]
    if run.study.personalisation.kind != "none":
        return personal_facts(run.study, here, federated.own, alone)
    if run.study.federation.local_parameters == "none" or not run.options.baselines:
        return None
    federation = hospitals.all_shared(run.federation)
    bench = shared_workbench(federation.study, federation.device)
    shared = _train(replace(run, study=federation.study, bench=bench, federation=federation), federation, "all shared")
    return personal_facts(run.study, [e for e in shared.evaluations if e.site in trained], here, alone)


def _leave_one_out(run: _Run) -> list[LeftOut]:
    """Train the federation without each training hospital in turn. Error: StudyError for fewer than two."""
    names = run.federation.train_names
    if len(names) < 2:
        raise StudyError("--leave-one-out needs at least two training hospitals; this study has one.")
    began, arms = time.monotonic(), []
    for name in names:
        federation = hospitals.without(run.federation, run.dataset, name)
        arm = _train(run, federation, f"without {name}")
        spent = assemble.seconds(RunDir(federation.folder).rounds(), {})
        arms.append(LeftOut(name, federation, arm.evaluations, spent))
    run.clock["leave_one_out"] = time.monotonic() - began
    return arms


def _tables(run: _Run, evaluations: list[SiteEvaluation]) -> dict[str, Any]:
    held_out = frozenset(run.study.hospitals.held_out)
    return assemble.arm_tables(run.study, evaluations, held_out) | _group_tables(run, evaluations)


def _group_tables(run: _Run, evaluations: list[SiteEvaluation]) -> dict[str, Any]:
    found = groups.simulated_groups(run.study, run.dataset, run.federation)
    return groups.group_tables(run.study, evaluations, found, groups.least_shown(run.study))


def _local_models(run: _Run) -> list[LocalModel]:
    federation = hospitals.local_only(run.federation)
    federation.save()
    run.view.arm("local only", 0)
    models: list[LocalModel] = []

    def on_site(model: LocalModel) -> None:
        models.append(model)
        RunDir(federation.folder / "sites" / model.site).save_weights(run.bench, model.weights)
        run.view.say(f"local only: {model.site} {'refused: ' + model.refused if model.refused else 'trained alone'}")

    app = build_local_only_app(
        _public(run, federation), run.bench.start, at_once=2 * run.workers, on_site=on_site
    )
    _carry(run, app, federation)
    return models


def _first_words(run: _Run) -> str:
    n_train, n_out = len(run.federation.train_names), len(run.study.hospitals.held_out)
    mine = (run.federation.train_site >= 0) | (run.federation.test_site >= 0)
    ids = run.dataset.patient_ids if run.study.hospitals.sites is None else run.dataset.patient_ids[mine]
    patients = len(np.unique(ids))
    held = f" + {n_out} held out" if n_out else ""
    if run.study.privacy is None:
        private = "no differential privacy"
    else:
        plan = next(iter(run.federation.plans.values()))
        private = f"{plan.unit}-level DP, engine {run.facts['engine']}"
    return (
        f"{run.study.name}: {n_train} hospitals{held}, {patients} patients, {len(ids)} scans; {run.study.model.name} "
        f"with {run.bench.initial.size:,} trainable parameters; {private}; {run.workers} worker(s) on {run.federation.device}"
    )


def _finish(run: _Run, federated: _Arm, blocks: Mapping[str, Any], left_out: Sequence[LeftOut]) -> Path:
    """Write pictures, report.json and report.html; a run is finished once report.json is there."""
    seconds = assemble.seconds(run.folder.rounds(), run.clock)
    tree = {
        **assemble.head(run.study, run.dataset, run.bench, run.facts, run.federation),
        **_tables(run, federated.evaluations),
        "rounds": run.folder.rounds(),
        **blocks,
        "fairness": fairness_facts(
            run.study, hospitals.public_weights(run.federation, run.dataset), run.folder.rounds(),
            on_validation=bool((run.federation.validation_site >= 0).any())),
        "seconds": seconds,
        "bytes_per_round_per_site": 2 * 4 * run.bench.shared_size,
        "peak_memory_mb": machine.peak_memory_mb(),
        "workers": run.workers,
    }
    tree["site_privacy"] = site_privacy_facts(run.study, _means(run, run.federation), len(run.federation.train_names))
    tree["sites"] = assemble.site_facts(run.federation, run.dataset, tree.pop("sites"), run.folder.rounds())
    tree["calibration"] = calibration_block(run.study, run.dataset, run.federation, federated.evaluations, federated.tempering)
    write_calibration(run.folder.path, federated.tempering)
    tree |= evaluation_blocks(run.study, run.dataset, run.federation, tree, federated.evaluations, left_out)
    if run.options.report:
        from fedimaging.runs.illustrate import illustrate

        tree["pictures"] = illustrate(run.study, run.dataset, run.federation, run.bench, federated.weights, run.folder.path)
    write_json(run.folder.path / "report.json", tree)
    if run.options.report:
        from fedimaging.runs.report import write_page

        write_page(run.folder.path)
    return run.folder.path / "report.json"
