"""The page for a hospital's privacy officer: one self-contained HTML file, made from the site folder alone.

It stays in the hospital: it names who decided, and counts that the hospital may not wish to publish.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedimaging import __version__
from fedimaging.errors import FedimagingError
from fedimaging.files import write_text
from fedimaging.runs.charts import budget_bar
from fedimaging.runs.report import render
from fedimaging.runs.report_privacy import Band
from fedimaging.runs.report_text import bytes_text, count_text, delta_text, epsilon_text
from fedimaging.runs.site_report_words import CODES, EVALUATIONS, not_protected, protected, unaccounted
from fedimaging.runs.time_chart import Course, time_chart
from fedimaging.site.approvals import Approval
from fedimaging.site.folder import SiteFolder
from fedimaging.site.record import Left, Record, Spent, day_and_time, read_record
from fedimaging.study.load import load
from fedimaging.study.schema import Study

_SHOWN_ROWS = 12  # of what left; the rest is folded away
_NEARLY = 0.8  # of a budget


@dataclass(frozen=True)
class Card:
    """One key figure."""

    label: str
    value: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class StudyRow:
    """One study that was ever approved. `facts`: (label, text)."""

    name: str
    fingerprint: str
    state: str
    tone: str
    facts: tuple[tuple[str, str], ...]


def write_site_page(folder: SiteFolder, out: Path | None = None) -> Path:
    """Write the page to `out` (default: report.html in the folder); return its path. Errors: SiteError, RunError."""
    record = read_record(folder)
    path = out or folder.path / "report.html"
    settings, policy = folder.settings, folder.policy
    studies = [_study(folder, record, approval) for approval in record.studies.values()]
    private = all(approval.plan is not None for approval in record.studies.values() if record.rounds_of(approval.study))
    page = render(
        "site.html.j2", title=f"Privacy record of {settings.name}", name=settings.name, contact=settings.contact,
        made=day_and_time(time.time()), version=__version__, server=settings.server, lead=_lead(record, private=private),
        bands=_bands(folder, record, private=private), cards=_cards(record), verdicts=record.verdicts, missing=record.missing,
        spent=[_budget_row(one) for one in record.spent], chart=_chart(record),
        years=[(year, epsilon_text(value)) for year, value in record.years.items()],
        delta=delta_text(policy.in_total.delta), decisions=[_decision(event) for event in record.decisions],
        studies=studies, left=[_left_row(record, one) for one in reversed(record.left)], shown_rows=_SHOWN_ROWS,
        refusals=[_refusal(record, *row) for row in record.refusals], events=_event_counts(record),
        protected=protected(record, policy, private=private), not_protected=not_protected(policy, private=private),
        opted_out=_opt_out(folder), changes=[day_and_time(e["time"]) for e in record.events if e["event"] == "left_out_changed"],
        consent=policy.consent_column, consent_values=policy.consent_values,
        policy=folder.policy_file.read_text(encoding="utf-8"),
    )
    write_text(path, page)
    return path


def _lead(record: Record, *, private: bool) -> str:
    updates = [one for one in record.left if one.what == "update"]
    standing = sum(approval.approved for approval in record.studies.values())
    if not record.left:
        return f"{count_text(standing, 'study', 'studies').capitalize()} may train here. Nothing has left this hospital so far."
    total = record.spent[0] if record.spent else None
    bare = unaccounted(record)
    what = "All of it" if private and not bare else "What left under differential privacy"
    spent = (
        f" {what} together lets nobody learn more about any one patient than ε = {epsilon_text(total.epsilon)} allows "
        f"(δ = {delta_text(total.budget.delta)}; {total.budget.epsilon:g} is the limit)." if total else ""
    )
    if bare:
        spent += f" {count_text(len(bare), 'evaluation')} without noise {'is' if len(bare) == 1 else 'are'} not counted in it."
    first, last = day_and_time(record.left[0].time)[:10], day_and_time(record.left[-1].time)[:10]
    span = f"On {first}" if first == last else f"From {first} to {last}"
    return (
        f"{count_text(standing, 'study', 'studies').capitalize()} may train here. {span}, "
        f"{count_text(len(updates), 'model update')} and {count_text(len(record.left) - len(updates), 'evaluation')} left this "
        f"hospital; no image, label or patient id did.{spent}"
    )


def _bands(folder: SiteFolder, record: Record, *, private: bool) -> Iterator[Band]:
    for verdict in record.verdicts:
        if not verdict.ok:
            yield Band("danger", f"The {verdict.what} is not in order", verdict.text)
    if not private:
        yield Band("danger", "A study trained without differential privacy", (
            "What left under it carries no limit on what can be learnt about a patient; epsilon does not count it."
        ))
    if folder.policy.allow_simulated_noise or any(e.get("noise") == "simulated" for e in record.events):
        yield Band("danger", "Test mode: simulated noise", (
            "The policy allows, or allowed, noise that follows from the study's seed. Whoever knows the study can take it "
            "away again: it protects nobody, whatever epsilon says."
        ))
    for one in record.spent:
        if one.epsilon >= _NEARLY * one.budget.epsilon:
            yield Band("warning", f"Little is left of the budget {one.span}", (
                f"ε = {epsilon_text(one.epsilon)} of {one.budget.epsilon:g} is spent. A round that would pass it is refused."
            ))
    if record.missing:
        yield Band("warning", "The log has fewer lines than the ledger has releases", (
            f"{count_text(record.missing, 'release')} booked in the ledger cannot be found in the log: a crash between booking "
            "and sending, or lines that were cut off at the end of the log."
        ))


def _cards(record: Record) -> Iterator[Card]:
    for one in record.spent:
        tone = "danger" if one.epsilon > one.budget.epsilon else "warning" if one.epsilon >= _NEARLY * one.budget.epsilon else ""
        yield Card(f"ε spent {one.span}", epsilon_text(one.epsilon), f"of {one.budget.epsilon:g} allowed", tone)
    updates = [one for one in record.left if one.what == "update"]
    yield Card("Model updates that left", count_text(len(updates)), bytes_text(sum(one.size or 0 for one in updates)))
    evaluations = len(record.left) - len(updates)
    yield Card("Evaluations that left", count_text(evaluations), "of the model on test or validation patients")
    yield Card("Requests refused", count_text(sum(row[2] for row in record.refusals)), "each is in the log")
    bad = [verdict.what for verdict in record.verdicts if not verdict.ok]
    yield Card("Ledger, log, approvals", "in order" if not bad else "ALTERED", ", ".join(bad) or "every entry checked",
               "danger" if bad else "")


def _budget_row(one: Spent) -> tuple[str, str, str, str, Markup]:
    return one.span, epsilon_text(one.epsilon), f"{one.budget.epsilon:g}", delta_text(one.budget.delta), budget_bar(
        one.epsilon, one.budget.epsilon)


def _chart(record: Record) -> Markup:
    if not record.spent or len(record.curve) < 2:
        return Markup("")
    looks = ("main s0", "main s1")
    names = ("in total", "in a year")
    return time_chart("Epsilon spent", [
        Course(names[place], [(point[0], point[1 + place]) for point in record.curve], looks[place], one.budget.epsilon)
        for place, one in enumerate(record.spent)
    ])


def _decision(event: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    words = "approved" if event["event"] == "approved" else "revoked"
    return day_and_time(float(event["time"])), words, f"{event['name']} ({event['study'][:12]})", event["who"], event["why"]


def _study(folder: SiteFolder, record: Record, approval: Approval) -> StudyRow:
    facts = [("Updates that left", f"of {count_text(record.rounds_of(approval.study), 'round')}")]
    try:
        facts = [*_study_facts(load(folder.study_file(approval.study))), *facts]
    except FedimagingError as error:
        facts.append(("The approved copy", f"cannot be read: {error}"))
    if approval.plan is not None:
        plan = approval.plan
        facts.append(("Protection", (
            f"each {plan['unit']} counts as one; noise multiplier {plan['noise_multiplier']:.4g}, clipped at "
            f"{plan['clip_norm']:g}; {count_text(plan['steps_per_round'], 'step')} a round, at most {plan['rounds']} rounds"
        )))
    else:
        facts.append(("Protection", "none: it trains without differential privacy, or only evaluates"))
    state = "approved" if approval.approved else "revoked"
    return StudyRow(approval.name, approval.study, state, "" if approval.approved else "held", tuple(facts))


def _study_facts(study: Study) -> Iterator[tuple[str, str]]:
    what = ", ".join(study.task.columns) or "the mask"
    yield "Learns", f"{study.task.kind}: {what}"
    yield "Model", study.model.name
    yield "Hospitals", ", ".join(study.hospitals.taking_part)
    yield "Rounds", f"{study.federation.rounds}, each with the updates of at least {study.federation.minimum_replies} hospitals"


def _left_row(record: Record, one: Left) -> tuple[str, ...]:
    study = record.studies.get(one.study)
    mode = f"calibration {one.how}" if one.what == "calibration" else one.how
    what = "model update" if one.what == "update" else EVALUATIONS.get(mode, mode)
    return (
        day_and_time(one.time), study.name if study else one.study[:12], str(one.round), what,
        "" if one.size is None else bytes_text(one.size), "" if one.norm is None else f"{one.norm:.4g}",
        "" if one.epsilon is None else epsilon_text(one.epsilon),
    )


def _refusal(record: Record, study: str, code: str, times: int, last: float) -> tuple[str, str, str, str, str]:
    approval = record.studies.get(study)
    name = approval.name if approval else study[:12] or "no known study"
    return code, CODES.get(code, "an error; the node's own screen says which"), name, count_text(times), day_and_time(last)


def _event_counts(record: Record) -> list[tuple[str, int]]:
    names = ("node_started", "node_stopped", "left_out_changed")
    counts = [(name, sum(event["event"] == name for event in record.events)) for name in names]
    return [(name.replace("_", " "), count) for name, count in counts if count]


def _opt_out(folder: SiteFolder) -> str:
    return count_text(len(folder.opt_out), "patient id")

