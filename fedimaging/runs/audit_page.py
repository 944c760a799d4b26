"""The page of an audit: RUN/audit.html, made from RUN/audit.json and the pictures it names. One file, no network."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedimaging.errors import RunError
from fedimaging.files import write_text
from fedimaging.results import Interval
from fedimaging.runs.charts import Axis, interval_row, interval_ruler, round_axis
from fedimaging.runs.report import render
from fedimaging.runs.report_pictures import embed
from fedimaging.runs.report_privacy import Band
from fedimaging.runs.report_text import duration_text, epsilon_text
from fedimaging.runs.report_view import Card

_NAMES = {
    "membership.loss": "Membership by loss", "membership.lira": "Membership by LiRA",
    "membership.updates": "Membership from updates", "reproduction": "Run again", "canaries.one_run": "Canaries in one run",
    "mechanism.white_box": "One private step", "inversion.analytic": "Inversion by arithmetic",
    "inversion.optimised": "Inversion by search",
}
_TONES = {"violation": "danger", "inconclusive": "warning", "consistent": "", "no claim": "warning"}
_MEANING = {
    "violation": ("A promise is broken", "At least one attack found more than the guarantee allows. Do not release this model."),
    "inconclusive": (
        "Not all attacks could tell", "No attack found more than the guarantee allows, but at least one could not have found it.",
    ),
    "consistent": ("Consistent with the guarantee", (
        "No attack found more than the guarantee allows, and each of them could have. This is no proof of the guarantee: a "
        "stronger attack may find more. The proof is the accounting in the report."
    )),
    "no claim": ("Nothing was promised", "The study has no differential privacy; the attacks show what that means."),
}


@dataclass(frozen=True)
class Row:
    """One attack in the table."""

    name: str
    target: str
    sizes: str
    plot: Markup
    figures: tuple[tuple[str, str], ...]
    verdict: str
    why: str
    tone: str


def write_audit_page(run: Path) -> Path:
    """Write RUN/audit.html; returns its path. Error: RunError where audit.json is missing or not as an audit writes it."""
    try:
        tree = json.loads((run / "audit.json").read_text(encoding="utf-8"))
        page = _page(run, tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{str(run / 'audit.json')!r} is not as an audit writes it ({error!r}); audit the run again.") from error
    write_text(run / "audit.html", page)
    return run / "audit.html"


def _page(run: Path, tree: Mapping[str, Any]) -> str:
    attacks = tree["attacks"]
    rates = [a for a in attacks if "auc" in a["metrics"]]
    shown = [a["metrics"]["auc"] for a in rates] + [a["groups"]["control"]["auc"] for a in rates if "control" in a["groups"]]
    axis = round_axis([x for one in shown for x in _ends(one)] + [0.5], bounded=True, most_ticks=4)
    heading, text = _MEANING[tree["verdict"]]
    return render(
        "audit.html.j2", title=f"Audit of {tree['name']}", tree=tree, bands=[Band(_TONES[tree["verdict"]], heading, text)],
        cards=_cards(tree), ruler=interval_ruler(axis), members=[_row(a, axis) for a in rates],
        others=[_row(a, axis) for a in attacks if "auc" not in a["metrics"]], groups=_groups(rates),
        pictures=[
            {"name": _NAMES[a["name"]], "data": embed(run, a["groups"]["picture"]), "why": a["why"]}
            for a in attacks if a["groups"].get("picture")
        ],
        options=", ".join(f"{key} {_plain(value)}" for key, value in tree["options"].items()),
        versions=", ".join(f"{key} {value}" for key, value in tree["versions"].items()),
        took=duration_text(tree["seconds"]), each=f"{tree['confidence']['each']:.2%}",
    )


def _cards(tree: Mapping[str, Any]) -> list[Card]:
    verdicts = [a["verdict"] for a in tree["attacks"]]
    claimed = [a["ceiling"]["epsilon"] for a in tree["attacks"] if a["ceiling"] and a["name"] == "membership.updates"]
    proven = [a for a in tree["attacks"] if a["name"] == "canaries.one_run"]
    cards = [Card("Verdict", tree["verdict"], f"{verdicts.count('consistent')} of {len(verdicts)} attacks consistent",
                  _TONES[tree["verdict"]])]
    if proven:
        metrics = proven[0]["metrics"]
        claimed = [proven[0]["ceiling"]["epsilon"]]
        cards.append(Card("Privacy that canaries disprove", f"ε < {metrics['epsilon_low_gaussian']['value']:.2f}",
                          f"for a Gaussian trade-off; for any mechanism ε < {metrics['epsilon_low']['value']:.2f}"))
    if claimed:
        cards.insert(1, Card("Privacy claimed", f"ε = {epsilon_text(claimed[0])}", "by the largest hospital's ledger"))
    best = max((a["metrics"]["auc"]["value"] for a in tree["attacks"] if "auc" in a["metrics"]), default=None)
    if best is not None:
        cards.append(Card("Best membership attack", f"{best:.2f}", "area under the curve; see its control"))
    return cards


def _row(attack: Mapping[str, Any], axis: Axis) -> Row:
    metrics, groups = attack["metrics"], attack["groups"]
    ceiling = attack["ceiling"] or {}
    figures = []
    for key, value in metrics.items():
        if value is not None:
            allowed = f", at most {ceiling[key]:.1%} allowed" if key in ceiling else ""
            figures.append((_metric_name(key), _figure(key, value) + allowed))
        elif key.startswith("tpr"):
            figures.append((_metric_name(key), "too few non-members"))
    control = groups.get("control", {})
    if "auc" in control:
        figures.append(("Same groups, not trained on", f"AUC {_figure('auc', control['auc'])}"))
    bare = {key: value for key, value in control.items() if key != "auc" and value}
    figures += [(f"Without noise and clip: {_metric_name(key)}", _figure(key, value)) for key, value in bare.items()]
    plot = Markup("")
    if "auc" in metrics:
        marks = [("Attack", _interval(metrics["auc"]))] + ([("Control", _interval(control["auc"]))] if "auc" in control else [])
        plot = interval_row(marks, axis)
    sizes = ", ".join(f"{size:,} {name.replace('_', '-')}" for name, size in attack["sizes"].items())
    return Row(
        _NAMES.get(attack["name"], attack["name"]), f"{attack['target']}; per {attack['unit']}", sizes, plot, tuple(figures),
        attack["verdict"], attack["why"], _TONES[attack["verdict"]],
    )


def _groups(attacks: list[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """(attack, group, sizes, AUC) of every group that was large enough."""
    return [
        (f"{_NAMES[a['name']]}, {a['target']}, per {a['unit']}", name,
         f"{group['members']} and {group['non_members']}", _figure("auc", group["auc"]))
        for a in attacks for kind in ("hardest", "hospitals", "sex") for name, group in a["groups"].get(kind, {}).items()
    ]


def _metric_name(key: str) -> str:
    known = {
        "auc": "Area under the curve", "epsilon_low": "ε, any mechanism", "epsilon_low_gaussian": "ε, Gaussian trade-off",
        "mu_low": "μ", "mu": "μ, estimate", "tpr": "Canaries found",
        "ssim": "SSIM", "psnr": "PSNR", "identification": "Named among candidates",
        "equal_numbers": "Equal numbers", "relative_distance": "Distance over distance trained",
    }
    return known.get(key) or key.replace("tpr_at_", "Found at ").replace("%", " % false alarms")


def _figure(key: str, value: Mapping[str, float | None]) -> str:
    number, low, high = (value.get(end) for end in ("value", "low", "high"))
    if number is None:
        return "unknown"
    percent = key.startswith("tpr") or key in ("identification", "equal_numbers")

    def text(x: float) -> str:
        if percent:
            return f"{x:.1%}"
        return f"{x:.1e}" if key == "relative_distance" else f"{x:.1f} dB" if key == "psnr" else f"{x:.3f}"

    if low is not None and high is not None:
        return f"{text(number)} ({text(low)}–{text(high)})"
    if low is not None:
        return f"at least {text(low)}" if low == number else f"{text(number)}, at least {text(low)}"
    return text(number)


def _interval(value: Mapping[str, float | None]) -> Interval:
    number, low, high = (math.nan if value[end] is None else float(value[end] or 0.0) for end in ("value", "low", "high"))
    return Interval(number, low, high, 0)


def _ends(value: Mapping[str, float | None]) -> list[float]:
    return [x for x in (value["value"], value["low"], value["high"]) if x is not None]


def _plain(value: Any) -> str:
    return " and ".join(value) if isinstance(value, list) else str(value)
