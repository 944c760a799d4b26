"""The report page of a run: one self-contained HTML file, made only from the run folder's report.json and pictures.

The page needs no network, no fonts and no JavaScript (a few inline lines sort its tables; a content security policy
inside the page admits these lines by their hash and nothing else).
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedimaging.errors import RunError, bad_value
from fedimaging.files import remove_cut_short, write_text
from fedimaging.runs import (
    report_calibration,
    report_compare,
    report_cost,
    report_evaluation,
    report_groups,
    report_personal,
    report_tables,
    report_view,
)
from fedimaging.runs.charts import interval_ruler, line_key, mark_key, share_key
from fedimaging.runs.report_curves import curves
from fedimaging.runs.report_pictures import embed, examples, map_notes
from fedimaging.runs.report_privacy import UNITS, privacy_bands
from fedimaging.runs.report_text import NOT_MEASURED, metric_words, short_number

SCHEMA = "fedimaging-report/1"
_TEMPLATES = Path(__file__).parent / "templates"


def write_page(run: Path) -> Path:
    """Write `run`/report.html from `run`/report.json and the pictures it names; return the page's path.

    Whatever the run did not record is left out or said to be unknown; only a missing, unreadable or foreign
    report.json, a picture outside the run folder, or a page that cannot be written raises RunError.
    """
    report = read_report(run)
    title = report.get("name") or run.resolve().name
    try:
        parts = _head(report) | _results(report) | _rest(run, report)
        page = render("report.html.j2", title=title, report=_filled(report), **parts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run / 'report.json'} is not as a run writes it ({error}); restore it or run again.") from error
    write_text(run / "report.html", page)
    return run / "report.html"


def complete_page(run: Path) -> None:
    """The page of a finished run, where there is none or one of an earlier report: the run was killed before it wrote it, or made
    without. Errors of `write_page`."""
    remove_cut_short(run, "report.html")
    page, report = run / "report.html", run / "report.json"
    if not page.exists() or page.stat().st_mtime_ns < report.stat().st_mtime_ns:
        write_page(run)


def _head(report: Mapping[str, Any]) -> dict[str, Any]:
    """Sentence, notes, cards, hospitals, privacy."""
    facts = report_view.facts_of(report)
    rows, axis = report_view.site_rows(report)
    return {
        "facts": facts, "bands": privacy_bands(facts), "unit_words": [UNITS.get(unit, unit) for unit in facts.units],
        "summary": report_view.summary(report, facts),
        "cards": report_view.cards(report, facts, report_evaluation.worst_cards(report)),
        "sites": rows, "ruler": interval_ruler(axis),
        "has_prevalence": any(row.prevalence != NOT_MEASURED for row in rows),
        "spent": [row.privacy for row in rows if row.privacy and not row.held_out],
    }


def _results(report: Mapping[str, Any]) -> dict[str, Any]:
    """Everything measured: held-out hospitals, curves, baselines, all metrics."""
    held_out, held_out_axis = report_tables.held_out_rows(report)
    compared, compared_axis = report_tables.baseline_rows(report)
    groups, groups_axis = report_groups.group_tables(report)
    return {
        "metric": metric_words(report_view.primary_metric(report)),
        "held_out": held_out, "held_out_ruler": interval_ruler(held_out_axis), "curves": curves(report),
        "groups": groups, "groups_ruler": interval_ruler(groups_axis), "groups_words": report_groups.source_words(report),
        "personal": report_personal.personal_section(report), "fairness": report_personal.fairness_section(report),
        "series": [name for name, _ in report_tables.baseline_series(report)],
        "compared": compared, "compared_ruler": interval_ruler(compared_axis),
        "evaluation": report_evaluation.evaluation_view(report),
        "calibration": report_calibration.calibration_view(report), "metrics": report_tables.metric_table(report),
        "site_metrics": report_tables.site_metric_table(report),
    }


def _rest(run: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures, cost, study."""
    shown = examples(run, report)
    return {
        "examples": shown, "map_notes": map_notes(shown),
        "contact_sheet": embed(run, report_view.part(report, "pictures").get("contact_sheet")),
        "cost": report_cost.cost_rows(report), "time": report_cost.time_shares(report),
        "model_words": _model_words(report),
        "study": yaml.safe_dump(report.get("study") or {}, sort_keys=False, allow_unicode=True),
    }


def compare(runs: Sequence[Path], out: Path) -> Path:
    """Write a page that sets several runs side by side to the file `out`; return it. Errors as `write_page`."""
    if not runs:
        raise RunError(bad_value("runs", list(runs), "is empty", "name at least one run folder"))
    reports = report_compare.unique_names([(run.resolve().name, read_report(run)) for run in runs])
    rows, axis = report_compare.run_rows(reports)
    page = render(
        "compare.html.j2", title="Comparison of runs", names=list(reports), rows=rows, ruler=interval_ruler(axis),
        metric=metric_words(report_view.primary_metric(next(iter(reports.values())))),
        bands=report_compare.comparison_bands(reports), curves=report_compare.run_curves(reports),
        metrics=report_compare.metric_columns(reports), differences=report_compare.study_differences(reports),
    )
    write_text(out, page)
    return out


def read_report(run: Path) -> dict[str, Any]:
    """`run`/report.json with NaN read as null. RunError when it is missing, not JSON, or of another schema."""
    path = run / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; let the run finish, or name a run folder.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it or finish the run again.") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise RunError(bad_value(f"{path}: schema", schema, f"is not {SCHEMA!r}", "make the report with this version"))
    return _without_nan(report)


def _filled(report: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the templates read by themselves, null where the run has none."""
    said = report_view.part(report, "privacy")
    privacy = {key: said.get(key) for key in ("statement", "not_protected", "engine")}
    top = {key: report.get(key) for key in ("created", "fingerprint", "data_fingerprint", "seed", "versions", "study")}
    released = report_view.part(report, "released").get("words")
    return top | {"privacy": privacy, "kind": report_view.part(report, "task").get("kind"), "released": released,
                  "site_privacy": report_view.part(report, "site_privacy").get("words")}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _model_words(report: Mapping[str, Any]) -> str:
    model = report_view.part(report, "model")
    name = str(model.get("name") or "unknown")
    if not model.get("parameters"):
        return name
    trained = model.get("trainable_parameters")
    return f"{name}, {short_number(trained)} of {short_number(model['parameters'])} parameters trained"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(mark_key=mark_key, line_key=line_key, share_key=share_key)
    return environment


def render(template: str, **values: Any) -> str:
    """A page of `templates/`, with the look and the policy that every page has."""
    script = (_TEMPLATES / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return _environment().get_template(template).render(script=script, script_hash=digest, **values)

