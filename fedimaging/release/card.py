"""The model card: what the model is for, how good it is and for whom, what is protected and what is not, who answers for it.

Made from the run's report, once, at release; the page (card.html) and the text (card.md) say the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedimaging.release.cells import Counting
from fedimaging.release.checks import Check
from fedimaging.release.reference import group_performance, shown_table
from fedimaging.release.source import Source
from fedimaging.runs import report_view
from fedimaging.runs.report import render
from fedimaging.runs.report_privacy import Band, noise_words, privacy_bands
from fedimaging.runs.report_text import delta_text, epsilon_text, interval_text, metric_words, read_interval

Row = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading with lines of text, and a table where `head` names its columns."""

    heading: str
    lines: tuple[str, ...] = ()
    head: Row = ()
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class People:
    """Who releases the model, in which role, and why."""

    approved_by: str
    role: str
    reason: str


@dataclass(frozen=True)
class Card:
    """The whole card."""

    title: str
    bands: tuple[Band, ...]
    sections: tuple[Section, ...]


def make_card(source: Source, people: People, checks: Sequence[Check], counting: Counting, facts: Mapping[str, Any]) -> Card:
    """The card of a release; `facts` are the manifest's so far. No count below the minimum is in it."""
    privacy = report_view.facts_of(source.report)
    return Card(
        f"Model card: {source.study.name}",
        (*_waived(checks), *_attack_bands(source), *privacy_bands(privacy)),
        (
            _people(people, facts), _use(source), _data(source, counting), _performance(source, counting),
            *_groups(source, counting), _calibration(source), _privacy(source), _attacks(source), _limits(source, counting),
            _checks(checks), _hashes(source, facts),
        ),
    )


def as_html(card: Card) -> str:
    """One self-contained page."""
    return render("card.html.j2", title=card.title, bands=card.bands, sections=card.sections)


def as_markdown(card: Card) -> str:
    """The same in Markdown."""
    parts = [f"# {card.title}", *(f"> **{band.heading}.** {band.text}" for band in card.bands)]
    for section in card.sections:
        parts += [f"## {section.heading}", *section.lines]
        if section.rows:
            lines = [section.head, ("---",) * len(section.head), *section.rows]
            parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines))
    return "\n\n".join(parts) + "\n"


def _waived(checks: Iterable[Check]) -> list[Band]:
    return [
        Band("danger", f"Released although a check failed: {check.name}", (
            f"{check.words[:1].upper()}{check.words[1:]}. Waived by {check.waived_by}: {check.waiver_reason}"
        ))
        for check in checks if check.waived_by
    ]


def _attack_bands(source: Source) -> list[Band]:
    verdict = (source.audit or {}).get("verdict")
    if verdict == "violation":
        return [Band("danger", "An attack broke the promise", "At least one attack found more than the guarantee allows.")]
    return []


def _people(people: People, facts: Mapping[str, Any]) -> Section:
    return Section("Who answers for this model", (
        f"Released by {people.approved_by} ({people.role}) on {facts['created']}. Reason: {people.reason}",
        "The releaser's key signed the manifest: `fedimaging verify` shows whether anything was changed since.",
    ))


def _use(source: Source) -> Section:
    limits = source.limits
    return Section("Intended use", (
        limits.intended_use or "Not stated by the study. A model without a stated use must not be used on patients.",
        *(f"Not for: {what}" for what in limits.not_for),
        "The model is no medical device by itself; whoever uses it on patients answers for that use.",
    ))


def _data(source: Source, counting: Counting) -> Section:
    names, task = source.bench.task.class_names, source.study.task
    rows = []
    for held_out in (False, True):
        for name, site in source.sites(held_out=held_out).items():
            trained = "none" if held_out else counting.words(site["patients"])
            rows.append((name, "held out" if held_out else "trained", trained, counting.words(site["test_patients"])))
    return Section(
        "Data, by hospital",
        (f"Task: {task.kind}, {', '.join(names)}. Images of {_times(source)} pixels, {source.study.data.channels} channel(s).",),
        ("Hospital", "Role", "Training patients", "Test patients"), tuple(rows),
    )


def _times(source: Source) -> str:
    return " x ".join(str(size) for size in source.study.data.image_size)


def _performance(source: Source, counting: Counting) -> Section:
    report = source.report
    tables = {"test patients of the training hospitals": report.get("test"), "held-out hospitals": report.get("held_out")}
    rows = [row for who, table in tables.items() for row in _metric_rows(who, table or {}, counting)]
    sites = source.sites(held_out=False) | source.sites(held_out=True)
    for name, site in sites.items():
        rows += _metric_rows(name, site.get("test") or {}, counting, only=source.metric)
    for name, row in ((report.get("leave_one_out") or {}).get("hospitals") or {}).items():
        rows += _metric_rows(f"{name}, by a model of the others", {source.metric: row.get("external")}, counting)
    hidden = sum(0 < (site["test_patients"] or 0) < counting.least for site in sites.values())
    lines = ["95 % intervals, bootstrap over patients."]
    if hidden:
        lines.append(f"Hospitals with fewer than {counting.least} test patients have no row of their own.")
    return Section("Performance", tuple(lines), _METRIC_HEAD, tuple(rows))


_METRIC_HEAD = ("Whom", "Metric", "Value and interval", "Patients")


def _metric_rows(who: str, table: Mapping[str, Any], counting: Counting, only: str | None = None) -> list[Row]:
    rows: list[Row] = []
    for metric in shown_table(table, counting):
        if only in (None, metric):
            one = table[metric]
            text = interval_text(read_interval(one), metric_words(metric).digits)
            rows.append((who, metric_words(metric).label, text, counting.words(one["n_patients"])))
    return rows


def _groups(source: Source, counting: Counting) -> list[Section]:
    report, rows = source.report, []
    for column, groups in group_performance(source, counting).items():
        for name in groups:
            table = report["groups"][column][name]
            rows += _metric_rows(f"{column}: {name}", table, counting, only=source.metric)
    if not rows:
        return [Section("Performance, by group", ("Not measured: the study names no groups of patients, or all are too small.",))]
    gaps = [
        f"{column}: {gap['worst']} below {gap['best']} by {gap['value']:.3f} ({gap['low']:.3f} to {gap['high']:.3f}), p = "
        f"{gap['p_value']:.3f}."
        for column, gap in (report.get("group_gaps") or {}).items() if gap and None not in (gap["value"], gap["low"], gap["high"])
    ]
    return [Section("Performance, by group", tuple(gaps), _METRIC_HEAD, tuple(rows))]


def _calibration(source: Source) -> Section:
    told = source.report.get("calibration") or {}
    words = (told.get("tempering") or {}).get("words")
    if words is None and source.calibration is None:
        words = "The probabilities are the network's own: no calibration was fitted."
    rows = []
    for when, table in (("before calibration", told.get("before")), ("after calibration", told.get("after"))):
        for who, key in (("test patients of the training hospitals", "test"), ("held-out hospitals", "held_out")):
            one = read_interval(((table or {}).get(key) or {}).get("ece"))
            if one is not None:
                rows.append((who, when, interval_text(one, 3)))
    lines = (words or "Probabilities are calibrated by a temperature.",)
    return Section("Calibration", lines, ("Whom", "When", "Expected calibration error"), tuple(rows))


def _privacy(source: Source) -> Section:
    told = source.report.get("privacy")
    if not told:
        nothing = "Trained without differential privacy: nothing is protected. The model may reveal who took part and what"
        return Section("Privacy", (f"{nothing} their images show.",))
    rows = []
    for name, site in source.sites(held_out=False).items():
        spent = site.get("privacy") or {}
        unit = str(spent.get("unit", "unknown"))
        rows.append((
            name, unit, epsilon_text(spent.get("epsilon")), delta_text(spent.get("delta")),
            str(spent.get("accountant", "unknown")), noise_words(str(spent.get("noise", "unknown"))),
        ))
    lines = (str(told["statement"]), *(f"Not protected: {line}" for line in told["not_protected"]))
    return Section("Privacy, by hospital", lines, ("Hospital", "Unit", "ε spent", "δ", "Accountant", "Noise"), tuple(rows))


def _attacks(source: Source) -> Section:
    if source.audit is None:
        return Section("Attacks", ("This model was not attacked (`fedimaging audit`) before it was released.",))
    rows = [(str(a["name"]), str(a["unit"]), str(a["verdict"])) for a in source.audit["attacks"]]
    line = f"Verdict of all attacks: {source.audit['verdict']}. An attack that finds nothing proves nothing."
    return Section("Attacks", (line,), ("Attack", "Unit", "Verdict"), tuple(rows))


def _limits(source: Source, counting: Counting) -> Section:
    external = "It was tested at hospitals that never trained." if source.report.get("held_out") else (
        "It was not tested at any hospital that did not train it: elsewhere it may do worse."
    )
    return Section("Limits", (
        external,
        f"Of groups with fewer than {counting.least} test patients nothing is shown, and nothing is known.",
        "It knows images like those of its hospitals: `fedimaging predict` flags others by their distance from the test "
        "patients, but what it says of an image that is not flagged can be wrong, too.",
        "Counts and figures are those of one split of one study.",
    ))


def _checks(checks: Sequence[Check]) -> Section:
    rows = []
    for check in checks:
        result = "passed" if check.passed else f"FAILED, waived by {check.waived_by}: {check.waiver_reason}"
        rows.append((check.name, check.rule, _figure(check.limit), _figure(check.value), result))
    return Section("Checks before release", (), ("Check", "What", "Limit", "Found", "Result"), tuple(rows))


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _hashes(source: Source, facts: Mapping[str, Any]) -> Section:
    rows = [
        ("study fingerprint", source.study.fingerprint), ("model (bundle/models/model.pt)", facts["model_sha256"]),
        ("weights of the run", facts["run_weights_sha256"]), ("key of the releaser", facts["key_fingerprint"]),
        *((f"head of {name}'s ledger", one["head"]) for name, one in facts["ledgers"].items()),
        *((f"version of {name}", version) for name, version in facts["versions"].items()),
    ]
    equal = facts["export"]
    line = (
        f"The exported network ({equal['format']}) was compared with the trained one on {equal['compared_inputs']} inputs: "
        f"largest difference {equal['largest_difference']:.2g}."
    )
    return Section("Versions and hashes", (line,), ("What", "Value"), tuple(rows))
