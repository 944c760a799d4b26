"""The head of the report page: the sentence, the key figures and the table of hospitals, made from report.json."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedimaging.results import Interval
from fedimaging.runs.charts import Axis, interval_row, round_axis
from fedimaging.runs.report_privacy import PrivacyFacts, SitePrivacy, privacy_facts, privacy_phrase, site_privacy
from fedimaging.runs.report_text import (
    NOT_MEASURED,
    count_text,
    delta_text,
    epsilon_text,
    humanise,
    interval_text,
    metric_words,
    read_interval,
    rounds_text,
    short_number,
    spread_text,
)

Report = Mapping[str, Any]
REFUSALS = {
    "budget_exceeded": "its privacy budget would have been passed",
    "ledger": "its ledger was missing or altered",
    "privacy": "the privacy claim could not be kept",
    "data": "its data could not be read",
}


@dataclass(frozen=True)
class Card:
    """A key figure."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class SiteRow:
    """One hospital of the table "Who trained"."""

    name: str
    held_out: bool
    patients: str
    scans: str
    test_patients: str
    prevalence: str
    refusals: tuple[str, ...]
    plot: Markup
    result: str
    privacy: SitePrivacy | None


def part(report: Report, key: str) -> Mapping[str, Any]:
    """A block of the report; an absent or null one is empty."""
    return report.get(key) or {}


def primary_metric(report: Report) -> str:
    """The metric of record: the task's own, else the first one measured."""
    named = part(report, "task").get("primary_metric")
    return str(named or next(iter(part(report, "test")), "loss"))


def is_classification(report: Report) -> bool:
    """Segmentation metrics are undefined for other reasons than a missing class."""
    return part(report, "task").get("kind") != "segmentation"


def sites_in_order(report: Report) -> dict[str, Mapping[str, Any]]:
    """Training hospitals by name, then the held-out ones."""
    sites = part(report, "sites")
    return {name: sites[name] or {} for name in sorted(sites, key=lambda n: (is_held_out(sites[n] or {}), n))}


def is_held_out(site: Mapping[str, Any]) -> bool:
    """A hospital that only tests."""
    return site.get("role") == "held_out"


def facts_of(report: Report) -> PrivacyFacts:
    """What the report says about privacy."""
    kept = bool(part(report, "privacy").get("kept_by_hospitals"))
    return privacy_facts(sites_in_order(report), kept_by_hospitals=kept)


def total(sites: Iterable[Mapping[str, Any]], key: str) -> int | None:
    """Sum of a count over hospitals, None if any of them does not tell it."""
    counts = [site.get(key) for site in sites]
    return sum(int(c) for c in counts if c is not None) if counts and None not in counts else None


def result_text(report: Report, metric: str, interval: Interval | None) -> str:
    """An interval in words, with the metric's own number of decimals."""
    return interval_text(interval, metric_words(metric).digits, classification=is_classification(report))


def summary(report: Report, facts: PrivacyFacts) -> str:
    """One sentence: who trained what for how long, how good it is, and how patients are protected."""
    trained = [site for site in part(report, "sites").values() if site and not is_held_out(site)]
    patients = total(trained, "patients")
    who = count_text(len(trained) or None, "hospital")
    whose = f" with {count_text(patients, 'patient')}" if patients else ""
    model = part(report, "model")
    size = f" ({short_number(model['parameters'])} parameters)" if model.get("parameters") else ""
    rounds = count_text(None if report.get("rounds") is None else len(report["rounds"]), "round")
    said = [f"{who}{whose} trained {model.get('name') or 'a model'}{size} for {rounds}", _result_phrase(report)]
    sentence = "; ".join([*said, privacy_phrase(facts)]) + "."
    return sentence[0].upper() + sentence[1:]


def _result_phrase(report: Report) -> str:
    metric = primary_metric(report)
    result = read_interval(part(report, "test").get(metric))
    if result is None:
        return "no test result"
    text = interval_text(result, min(2, metric_words(metric).digits), classification=is_classification(report))
    return f"{metric_words(metric).label} {text} on {count_text(result.n_patients, 'test patient')}"


def cards(report: Report, facts: PrivacyFacts, more_results: Iterable[Card] = ()) -> list[Card]:
    """The key figures, most important first; `more_results` stand beside the results."""
    metric, sites = primary_metric(report), sites_in_order(report)
    trained = [site for site in sites.values() if not is_held_out(site)]
    held = len(sites) - len(trained)
    rounds = report.get("rounds") or []
    model = part(report, "model").get("name") or "training"
    first = [_result_card(report, "test", f"{metric_words(metric).label}, test patients")]
    if part(report, "held_out"):
        first.append(_result_card(report, "held_out", f"{metric_words(metric).label}, held-out hospitals"))
    return [
        *first,
        *more_results,
        privacy_card(facts),
        Card("Hospitals", str(len(trained)), f"and {held} held out" if held else "none held out"),
        _patients_card(trained, facts),
        Card("Rounds", str(len(rounds)), f"of {model}"),
    ]


def _patients_card(trained: list[Mapping[str, Any]], facts: PrivacyFacts) -> Card:
    if facts.kept_by_hospitals and total(trained, "patients") is None:
        declared = total(trained, "declared_patients")
        return Card("Patients", "not told", f"{count_text(declared)} declared in public" if declared else "hospitals keep it")
    return Card("Training patients", count_text(total(trained, "patients")), f"{count_text(total(trained, 'scans'))} scans")


def privacy_card(facts: PrivacyFacts) -> Card:
    """The claim of the run as a key figure."""
    if facts.kept_by_hospitals:
        return Card("Privacy", "own ledgers", "each hospital keeps its own account")
    if not facts.claims:
        return Card("Privacy", "none" if not facts.accounted else "incomplete", "see the note above", "danger")
    note, tone = f"δ = {delta_text(facts.delta)}, for {facts.each}", ""
    if facts.simulated:
        note, tone = f"{note}; simulated noise, not secure", "warning"
    return Card("Privacy spent, at most", f"ε = {epsilon_text(facts.epsilon)}", note, tone)


def _result_card(report: Report, block: str, label: str) -> Card:
    metric = primary_metric(report)
    result, digits = read_interval(part(report, block).get(metric)), min(2, metric_words(metric).digits)
    if result is None or math.isnan(result.value):
        return Card(label, "–", result_text(report, metric, result))
    patients = count_text(result.n_patients, "patient")
    return Card(label, f"{result.value:.{digits}f}", f"{spread_text(result, digits)}, {patients}")


def metric_axis(metric: str, intervals: Iterable[Interval | None]) -> Axis:
    """One axis for all rows of a dot plot."""
    ends = [end for one in intervals if one is not None for end in (one.value, one.low, one.high)]
    return round_axis(ends, bounded=metric_words(metric).bounded, most_ticks=4)


def site_rows(report: Report) -> tuple[list[SiteRow], Axis]:
    """The table of hospitals, and the axis that its dots share."""
    metric, sites = primary_metric(report), sites_in_order(report)
    results = {name: read_interval((site.get("test") or {}).get(metric)) for name, site in sites.items()}
    axis = metric_axis(metric, results.values())
    rows = [
        SiteRow(
            name=name, held_out=is_held_out(site),
            patients=_patients(site), scans=count_text(site.get("scans")),
            test_patients=count_text(site.get("test_patients")),
            prevalence=prevalence_text(site.get("prevalence"), part(report, "task").get("kind")),
            refusals=refusal_texts(site.get("refused") or {}),
            plot=interval_row([(name, results[name])], axis),
            result=result_text(report, metric, results[name]),
            privacy=site_privacy(name, site.get("privacy")),
        )
        for name, site in sites.items()
    ]
    return rows, axis


def _patients(site: Mapping[str, Any]) -> str:
    declared = site.get("declared_patients")
    return f"{count_text(declared)} declared" if declared and site.get("patients") is None else count_text(site.get("patients"))


def prevalence_text(prevalence: Mapping[str, float] | None, kind: str | None) -> str:
    """`lesion 31 %`: for two classes the second one, otherwise up to four, commonest first."""
    if not prevalence:
        return NOT_MEASURED
    pairs = list(prevalence.items())
    if kind == "binary" and len(pairs) == 2:
        pairs = pairs[1:]
    ranked = sorted(pairs, key=lambda pair: -pair[1])
    more = f" and {len(ranked) - 4} more" if len(ranked) > 4 else ""
    return ", ".join(f"{name} {100 * share:.0f}\u00a0%" for name, share in ranked[:4]) + more


def refusal_texts(refused: Mapping[str, str]) -> tuple[str, ...]:
    """`Refused rounds 14–15: its privacy budget would have been passed`, one text for each code."""
    codes: dict[str, list[int]] = {}
    for number, code in refused.items():
        codes.setdefault(code, []).append(int(number))
    return tuple(
        f"Refused round{'s' if len(rounds) > 1 else ''} {rounds_text(rounds)}: "
        f"{REFUSALS.get(code, humanise(code).lower())}" for code, rounds in codes.items()
    )
