"""From evaluations, ledgers and clocks to the tables of report.json."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.errors import StudyError, unknown_name
from fedimaging.federated.local_only import LocalModel
from fedimaging.results import SiteEvaluation
from fedimaging.runs import machine
from fedimaging.runs.fairness_facts import steering_words
from fedimaging.runs.metric_tables import Table, metric_table, release_words
from fedimaging.site.simulated import SimulatedFederation, open_simulated_site
from fedimaging.study.schema import Study
from fedimaging.training.metrics import CLASSIFICATION_METRICS
from fedimaging.training.segmentation_metrics import SEGMENTATION_METRICS
from fedimaging.training.workbench import Workbench


def arm_tables(study: Study, evaluations: Sequence[SiteEvaluation], held_out: frozenset[str]) -> dict[str, Any]:
    """`test` over the training hospitals' test patients, `held_out` over the others', and `sites` one by one."""
    inside = [e for e in evaluations if e.site not in held_out]
    outside = [e for e in evaluations if e.site in held_out]
    return {
        "test": metric_table(study, inside),
        "held_out": metric_table(study, outside),
        "sites": {e.site: metric_table(study, [e]) for e in evaluations},
    }


def local_only_tables(study: Study, models: Sequence[LocalModel], held_out: frozenset[str]) -> dict[str, Any]:
    """`test`: every patient scored by the model of their own hospital. `matrix`: each model at each hospital."""
    own = [e for model in models for e in model.evaluations if e.site == model.site and e.site not in held_out]
    return {
        "test": metric_table(study, own),
        "held_out": {},
        "sites": {e.site: metric_table(study, [e]) for e in own},
        "matrix": {model.site: {e.site: metric_table(study, [e]) for e in model.evaluations} for model in models},
        "refused": {model.site: model.refused for model in models if model.refused},
    }


def head(
    study: Study, dataset: Dataset, bench: Workbench, facts: Mapping[str, Any], federation: SimulatedFederation
) -> dict[str, Any]:
    """What was trained, with what, on what."""
    return {
        **study_facts(study, bench),
        "created": facts["created"],
        "machine": machine.machine(federation.device),
        "workers_reason": facts["workers_reason"],
        "memory_format": {"name": facts["memory_format"], "reason": facts["memory_format_reason"]},
        "data_fingerprint": dataset.fingerprint,
        "privacy": _privacy(study, facts),
        "released": {
            "evaluation": study.policy.release_evaluation, "words": release_words(study.policy),
            "groups": "scores" if study.policy.release_evaluation == "scores" else study.policy.release_groups,
        },
    }


def study_facts(study: Study, bench: Workbench) -> dict[str, Any]:
    """The head of any report: the study, the model, the versions."""
    return {
        "schema": "fedimaging-report/1",
        "name": study.name,
        "study": study.model_dump(mode="json"),
        "fingerprint": study.fingerprint,
        "seed": study.seed,
        "versions": machine.versions(),
        "task": {"kind": study.task.kind, "class_names": list(bench.task.class_names), "primary_metric": primary_metric(study)},
        "model": {
            "name": study.model.name,
            "parameters": sum(p.numel() for p in bench.model.parameters()),
            "trainable_parameters": int(bench.initial.size),
        },
    }


def check_metric(study: Study) -> None:
    """Error: StudyError where evaluation.metric is none of the task's."""
    names = list(CLASSIFICATION_METRICS)
    if study.task.kind == "segmentation":
        each = range(1, study.task.classes) if study.task.classes > 2 else ()
        names = [*SEGMENTATION_METRICS, *(f"{name}_{k}" for name in SEGMENTATION_METRICS for k in each)]
    if study.evaluation.metric is not None and study.evaluation.metric not in names:
        raise StudyError(unknown_name("evaluation.metric", study.evaluation.metric, names))


def primary_metric(study: Study) -> str:
    """The study's own choice, else Dice or AUROC."""
    if study.evaluation.metric:
        return study.evaluation.metric
    return "dice" if study.task.kind == "segmentation" else "auroc"


def site_facts(
    federation: SimulatedFederation, dataset: Dataset, tables: Mapping[str, Table], rounds: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Per hospital: role, patients, class shares, test table, privacy spent as its ledger says, and refusals."""
    refused = refusals(rounds)
    held_out = set(federation.study.hospitals.held_out)
    facts = {}
    for place, name in enumerate(federation.names):
        spent = open_simulated_site(federation.folder, place).privacy_spent()
        rows = np.flatnonzero(federation.train_site == place)
        test = np.flatnonzero(federation.test_site == place)
        shown = test if name in held_out else rows
        facts[name] = {
            "role": "held_out" if name in held_out else "train",
            "patients": len(np.unique(dataset.patient_ids[shown])),
            "scans": len(shown),
            "test_patients": len(np.unique(dataset.patient_ids[test])),
            "prevalence": _prevalence(federation.study, dataset, shown),
            "test": tables.get(name, {}),
            "privacy": None if spent is None else spent.as_json(),
            "refused": refused.get(name, {}),
        }
    return facts


def refusals(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Per hospital: round (as text) -> the code with which it sent no update."""
    refused: dict[str, dict[str, str]] = {}
    for row in rounds:
        for site, code in row["refused"].items():
            refused.setdefault(site, {})[str(row["round"])] = code
    return refused


def total_metrics(evaluations: Iterable[SiteEvaluation]) -> dict[str, float]:
    """For the live view and the curves: the mean over hospitals, weighted by their test patients."""
    found = list(evaluations)
    totals: dict[str, float] = {}
    for name in sorted({key for e in found for key in (*e.metrics, "loss")}):
        pairs = [(e.loss if name == "loss" else e.metrics.get(name, float("nan")), e.n_patients) for e in found]
        pairs = [(value, n) for value, n in pairs if value == value and n > 0]
        if pairs:
            totals[name] = sum(v * n for v, n in pairs) / sum(n for _, n in pairs)
    return totals


def seconds(rounds: Sequence[Mapping[str, Any]], clock: Mapping[str, float]) -> dict[str, float]:
    """Wall time: `start` until round 1, `training` and `evaluation` summed over rounds, baselines, and all together."""
    training = sum(row["seconds"]["training"] for row in rounds)
    evaluation = sum(row["seconds"]["evaluation"] for row in rounds)
    return {key: round(value, 3) for key, value in {**clock, "training": training, "evaluation": evaluation}.items()}


def _prevalence(study: Study, dataset: Dataset, rows: np.ndarray) -> dict[str, float] | None:
    if dataset.labels is None or not len(rows):
        return None
    labels = dataset.labels[rows]
    names = study.task.class_names or (study.task.labels if labels.ndim == 2 else None)
    shares = labels.mean(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=study.task.classes) / len(labels)
    return {(names[k] if names else str(k)): round(float(share), 4) for k, share in enumerate(shares)}


NOT_PROTECTED = (
    "A patient who is treated at several hospitals: their guarantees add up (compose); the report gives each hospital's own.",
    "How many patients each training hospital has, and that it takes part: these are treated as public.",
    "What the model says about groups: differential privacy hides individuals, not facts about populations.",
    "Choosing a study's settings by looking at results on the same patients: such runs are charged only where they share "
    "a ledger.",
)
"""What differential privacy at the hospitals does not cover, in any run."""


IDEAL_SUM = (
    "This simulation assumes an ideal secure sum: each hospital added only its share of the noise, so the guarantee covers "
    "whoever sees the sum of all hospitals' updates and nothing else. A single hospital's update, as the server of this "
    "simulation saw it, is protected less. No real hospital takes part in such a study."
)
"""What `privacy.secure_sum: ideal` means, for a reader of the report."""


def privacy_statement(unit: str) -> str:
    """What a guarantee for such units means, and against whom it holds."""
    whole = "all scans of one patient at one hospital" if unit == "patient" else "one scan (not the whole patient)"
    return (
        f"The guarantee covers {whole}: whoever sees every update of the hospital, or the final model, learns almost the "
        "same whether or not that unit was in the training data. It holds against the server, the other hospitals and the "
        "public; only the hospital itself is trusted."
    )


_EXACT_SUMS = "Validation patients: the sums that the temperature was fitted to left each hospital without noise."


def _privacy(study: Study, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    if study.privacy is None:
        return None
    unit = study.privacy.unit
    not_protected = [
        *([release_words(study.policy)] if study.policy.release_evaluation in ("coarsened", "metrics", "scores") else []),
        *([steering_words(study)] if steering_words(study) else []),
        *([_EXACT_SUMS] if study.evaluation.calibration != "none" and study.calibration_release == "exact" else []),
        *NOT_PROTECTED[:3],
        "Simulated noise follows from the study's seed so that runs can be repeated: whoever knows the seed can remove it. "
        "Hospitals use a cryptographic generator instead.",
        *NOT_PROTECTED[3:],
    ]
    if unit == "record":
        not_protected.insert(0, "A patient with several scans: each further scan weakens the guarantee for the patient.")
    return {
        "unit": unit,
        "statement": IDEAL_SUM if study.privacy.secure_sum == "ideal" else privacy_statement(unit),
        "not_protected": not_protected,
        "engine": {"name": facts["engine"], "reason": facts["engine_reason"]},
    }


def headline(report: Mapping[str, Any]) -> str:
    """One line for the terminal: the primary metric with its interval, and the largest epsilon spent."""
    metric = report["task"]["primary_metric"]
    row = report["test"].get(metric) or {}
    value, low, high = ("?" if row.get(key) is None else f"{row[key]:.3f}" for key in ("value", "low", "high"))
    spent = [site["privacy"]["epsilon"] for site in report["sites"].values() if site.get("privacy")]
    privacy = f"largest ε spent {max(spent):.2f}" if spent else "no differential privacy"
    return f"test {metric} {value} ({low} to {high}); {privacy}; {report['seconds']['total']:.0f} s"
