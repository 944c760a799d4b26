"""What a hospital's people see on their terminal: how things stand, what left, what was spent."""

from collections.abc import Iterator
from typing import Any

from fedimaging.privacy.ledger_text import show
from fedimaging.site.folder import SiteFolder
from fedimaging.site.record import Left, Record, day_and_time, read_record, rounded_up

_SHOWN = 12  # characters of a study's fingerprint


def status(folder: SiteFolder) -> dict[str, Any]:
    """How things stand, as plain facts. Error: SiteError."""
    record, settings = read_record(folder), folder.settings
    last = record.events[-1] if record.events else None
    return {
        "name": settings.name, "server": settings.server,
        "in_order": {verdict.what: verdict.text if not verdict.ok else True for verdict in record.verdicts},
        "budgets": [
            {"days": one.budget.days, "epsilon": one.epsilon if one.epsilon < float("inf") else None,
             "allowed": one.budget.epsilon, "delta": one.budget.delta} for one in record.spent
        ],
        "studies": _studies(record),
        "last_event": None if last is None else {"event": last["event"], "time": last["time"]},
        "refusals": [
            {"study": study, "code": code, "times": times, "last": when} for study, code, times, when in record.refusals
        ],
        "test_mode": folder.policy.allow_simulated_noise,
    }


def status_lines(folder: SiteFolder) -> list[str]:
    """The same in words."""
    found = status(folder)
    lines = [f"{found['name']}, which joins {found['server']}"]
    for what, verdict in found["in_order"].items():
        lines.append(f"{what}: {'in order' if verdict is True else f'NOT IN ORDER: {verdict}'}")
    for one in found["budgets"]:
        span = "in total" if one["days"] is None else f"in the last {one['days']} days"
        spent = "without limit" if one["epsilon"] is None else rounded_up(one["epsilon"])
        lines.append(f"epsilon {span}: {spent} of {one['allowed']:g} (delta {one['delta']:g})")
    lines += [_study_words(one) for one in found["studies"]] or ["no study was ever approved"]
    for one in found["refusals"][:5]:
        study = f" (study {one['study'][:_SHOWN]})" if one["study"] else ""
        lines.append(f"refused {one['times']} x {one['code']}{study}, last on {day_and_time(one['last'])}")
    if found["last_event"]:
        lines.append(f"last event: {found['last_event']['event']}, {day_and_time(found['last_event']['time'])}")
    if found["test_mode"]:
        lines.append("TEST MODE: the policy allows simulated noise, which protects nobody")
    return lines


def study_lines(folder: SiteFolder) -> list[str]:
    """Every study that was ever approved, and how it stands."""
    return [_study_words(one) for one in _studies(read_record(folder))] or ["no study was ever approved"]


def log_lines(folder: SiteFolder) -> list[str]:
    """What left the hospital: when, of which study and round, how many bytes, norm, epsilon."""
    record = read_record(folder)
    head = ("when", "study", "round", "what", "bytes", "norm", "epsilon")
    table = [head, *(_left_cells(record, one) for one in record.left)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return [*(lines if record.left else ["nothing has left this hospital"]), *_doubts(record)]


def event_lines(folder: SiteFolder) -> list[str]:
    """Every event of the log, one a line."""
    hidden = ("sequence", "time", "event", "version", "previous", "hash")
    lines = []
    for event in read_record(folder).events:
        facts = ", ".join(f"{key} {_short(value)}" for key, value in event.items() if key not in hidden)
        lines.append(f"{day_and_time(event['time'])}  {event['event']}  {facts}".rstrip())
    return lines or ["the log is empty"]


def ledger_lines(folder: SiteFolder) -> list[str]:
    """Every event of the ledger in words, and the budgets. Error: LedgerError where it is not in order."""
    lines = show(folder.ledger_file, folder.ledger_head)
    for one in read_record(folder).spent:
        spent = f"{rounded_up(one.epsilon)} of {one.budget.epsilon:g}"
        lines.append(f"epsilon {one.span}: {spent} at delta {one.budget.delta:g}, for each patient")
    return lines


def _studies(record: Record) -> list[dict[str, Any]]:
    return [
        {"study": one.study, "name": one.name, "approved": one.approved, "who": one.who, "why": one.why, "time": one.time,
         "rounds_released": record.rounds_of(one.study), "trains": one.plan is not None}
        for one in record.studies.values()
    ]


def _study_words(one: dict[str, Any]) -> str:
    word = "approved" if one["approved"] else "REVOKED"
    return (
        f"study {one['study'][:_SHOWN]} {one['name']}: {word} by {one['who']} on {day_and_time(one['time'])} ({one['why']}); "
        f"updates of {one['rounds_released']} rounds have left"
    )


def _left_cells(record: Record, one: Left) -> tuple[str, ...]:
    study = record.studies.get(one.study)
    return (
        day_and_time(one.time), study.name if study else one.study[:_SHOWN], str(one.round),
        f"{one.what} {one.how}".strip(), "" if one.size is None else f"{one.size:,}",
        "" if one.norm is None else f"{one.norm:.4g}", "" if one.epsilon is None else rounded_up(one.epsilon),
    )


def _doubts(record: Record) -> Iterator[str]:
    for verdict in record.verdicts:
        if not verdict.ok:
            yield f"{verdict.what} NOT IN ORDER: {verdict.text}"
    if record.missing:
        yield (
            f"the ledger has {record.missing} release(s) without a line here: a crash between booking and sending, or lines "
            "that were cut off at the end of the log"
        )


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:_SHOWN] if len(str(value)) == 64 else str(value)  # a fingerprint
