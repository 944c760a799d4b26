"""The report of a run over real hospitals: what the server knows, and no more."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedimaging.results import SiteEvaluation
from fedimaging.runs import assemble, machine
from fedimaging.runs.beyond import released_blocks
from fedimaging.runs.fairness_facts import steering_words
from fedimaging.runs.groups import group_tables
from fedimaging.runs.worst import worst_group, worst_hospital
from fedimaging.study.schema import Study
from fedimaging.training.workbench import Workbench


def server_report(
    study: Study, bench: Workbench, rounds: Sequence[Mapping[str, Any]], evaluations: Sequence[SiteEvaluation],
    facts: Mapping[str, Any], seconds: float,
) -> dict[str, Any]:
    """report.json of a deployment. Absent, because hospitals do not tell: patients, scans, prevalence, pictures, and what
    each ledger says; `privacy.kept_by_hospitals` says where that is to be found."""
    tables = assemble.arm_tables(study, evaluations, frozenset(study.hospitals.held_out))
    report = {
        **assemble.study_facts(study, bench),
        "created": facts["created"],
        "machine": machine.machine(str(bench.device)),
        "privacy": _privacy(study),
        "test": tables["test"],
        "held_out": tables["held_out"],
        "sites": _sites(study, tables["sites"], rounds, evaluations, facts.get("declared_patients", {})),
        "rounds": list(rounds),
        "baselines": {},
        "seconds": assemble.seconds(rounds, {"total": seconds}),
        "bytes_per_round_per_site": 2 * 4 * bench.shared_size,
        "peak_memory_mb": machine.peak_memory_mb(),
        "released": {"groups": "policy"},
        **group_tables(study, evaluations, None, study.evaluation.minimum_group),
        **released_blocks(study, evaluations),
    }
    worst = {"worst_hospital": worst_hospital(report, study.evaluation.minimum_group), "worst_group": worst_group(report)}
    return report | worst


def _sites(
    study: Study, tables: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], evaluations: Sequence[SiteEvaluation],
    declared: Mapping[str, int | None],
) -> dict[str, Any]:
    refused = assemble.refusals(rounds)
    tested = {e.site: e.n_patients for e in evaluations}
    return {
        name: {
            "role": "held_out" if name in study.hospitals.held_out else "train",
            "declared_patients": declared.get(name),
            "test_patients": tested.get(name),
            "test": tables.get(name, {}),
            "privacy": None,
            "refused": refused.get(name, {}),
        }
        for name in study.hospitals.taking_part
    }


def _privacy(study: Study) -> dict[str, Any] | None:
    if study.privacy is None:
        return None
    return {
        "unit": study.privacy.unit,
        "kept_by_hospitals": True,
        "statement": assemble.privacy_statement(study.privacy.unit),
        "not_protected": [
            "Test patients: each hospital's own policy says what leaves of an evaluation; metrics that are neither noised nor "
            "withheld carry no protection.",
            *([steering_words(study)] if steering_words(study) else []),
            *assemble.NOT_PROTECTED,
        ],
        "engine": None,
    }
