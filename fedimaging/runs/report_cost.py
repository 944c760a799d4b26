"""What a run cost, and on what it ran: the last, plain part of the report."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from fedimaging.runs.charts import share_bar
from fedimaging.runs.report_text import bytes_text, count_text, duration_text, humanise


def cost_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much), only what the run has recorded."""
    seconds = report.get("seconds") or {}
    titles = {key: f"Time, {key.replace('_', ' ')}" for key in _order(seconds)} | {"total": "Time in all"}
    rows = [(titles[key], duration_text(seconds[key])) for key in _order(seconds)]
    per_site = report.get("bytes_per_round_per_site")
    if per_site is not None:
        rows.append(("Sent, per round and hospital", bytes_text(per_site)))
        rows.append(("Sent in all", bytes_text(sum(_sent(r, per_site) for r in report.get("rounds") or ()))))
    if report.get("peak_memory_mb") is not None:
        rows.append(("Memory, at most", bytes_text(report["peak_memory_mb"] * 1e6)))
    if report.get("workers") is not None:
        reason = f" ({report['workers_reason']})" if report.get("workers_reason") else ""
        rows.append(("Processes that trained", count_text(report["workers"]) + reason))
    layout = report.get("memory_format")
    if layout:
        rows.append(("Layout of activations in memory", f"{layout['name'].replace('_', ' ')} ({layout['reason']})"))
    return rows + _machine_rows(report.get("machine") or {})


def _order(seconds: Mapping[str, Any]) -> list[str]:
    return sorted((key for key, value in seconds.items() if value is not None), key=lambda key: key != "total")


def _sent(one_round: Mapping[str, Any], per_site: float) -> float:
    measured = one_round.get("bytes_per_site")
    return (per_site if measured is None else measured) * len(one_round.get("sites") or ())


def _machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    words = {
        "cpu": "{}", "cores": "{} cores", "memory_gb": "{:.0f} GB memory", "device": "trained on {}",
    }
    said = [text.format(machine[key]) for key, text in words.items() if machine.get(key) is not None]
    return [("Machine", ", ".join(said))] if said else []


def time_shares(report: Mapping[str, Any]) -> tuple[Markup, list[str]]:
    """A bar of where the time went and the names of its parts, in the order of their looks."""
    seconds = {k: float(v) for k, v in (report.get("seconds") or {}).items() if v is not None}
    whole = seconds.pop("total", 0.0)
    parts = [(humanise(key), value) for key, value in seconds.items()]
    rest = whole - sum(seconds.values())
    if rest > 0.005 * whole:
        parts.append(("Everything else", rest))
    return share_bar(parts), [name for name, _ in parts]
