"""The figures of a sweep's page: a metric, gaps and attacks against the privacy budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedimaging.runs.report_curves import Figure
from fedimaging.runs.report_text import humanise, metric_words
from fedimaging.runs.sweep_chart import Point, Series, budget_chart
from fedimaging.runs.sweep_grid import keys_at
from fedimaging.runs.sweep_summary import Cell, Estimate

MOST_COLOURS = 7
_ATTACK_METRICS = {
    "auc": "area under the ROC curve; 0.5 is guessing", "tpr_at_1%": "found at 1 % false alarms",
    "epsilon_low": "lower bound on ε", "ssim": "structural similarity of the reconstruction; 1 is the picture itself",
    "identification": "share of patients recognised in the reconstruction",
}


@dataclass(frozen=True)
class Variant:
    """One unit and one choice of keys over all budgets: `cells` are federated and by rising budget, without privacy last;
    `baselines`: arm -> its cell."""

    unit: str
    keys: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]
    baselines: Mapping[str, Cell]

    @property
    def name(self) -> str:
        """`patient, learning_rate=1`; the same for all where there is one."""
        return ", ".join([*filter(None, [self.unit]), *(f"{key}={value}" for key, value in self.keys)]) or "no privacy"


def variants_of(cells: Sequence[Cell]) -> list[Variant]:
    """In the order of the cells. The runs without privacy belong to every unit; alone, they are a variant."""
    federated = [cell for cell in cells if cell.arm == "federated"]
    named = dict.fromkeys((cell.unit, cell.keys) for cell in federated if cell.unit)
    found = []
    for unit, keys in named or dict.fromkeys(("", cell.keys) for cell in federated):
        plain = keys_at(math.inf, keys)
        mine = [c for c in federated if (c.unit, c.keys) == (unit, keys) or (not c.unit and c.keys == plain)]
        others = {c.arm: c for c in cells if c.arm != "federated" and c.keys == plain}
        found.append(Variant(unit, keys, tuple(sorted(mine, key=lambda c: c.epsilon)), others))
    return found


def utility(variants: Sequence[Variant], metric: str) -> list[Figure]:
    """The primary metric over all test patients: intervals over seeds, and beside it those over patients."""
    words = metric_words(metric)
    references: list[tuple[str, float]] = []
    own: list[tuple[str, float]] = []
    if len({keys_at(math.inf, variant.keys) for variant in variants}) == 1:
        found = variants[0].baselines
        pooled = found["pooled"].test if "pooled" in found else None
        alone = found["local_only"].site_mean if "local_only" in found else None
        references = [("Pooled", pooled.mean)] if pooled else []
        own = [("Local only", alone.mean)] if alone else []
    figures = []
    for over, note in (("seeds", "Bars: 95 % intervals over seeds (Student's t)."),
                       ("patients", "Bars: mean of the runs' 95 % intervals over test patients (bootstrap).")):
        series = [
            Series(variant.name, _look(k, len(variants)),
                   tuple(_point(cell, cell.test, over) for cell in variant.cells if cell.test is not None))
            for k, variant in enumerate(variants)
        ]
        chart = budget_chart(words.label, series, references=references, bounded=words.bounded)
        figures.append(Figure(f"{words.label} against the budget, intervals over {over}", chart, _legend(series), note))
    series = [
        Series(variant.name, _look(k, len(variants)),
               tuple(_point(cell, cell.site_mean, "seeds") for cell in variant.cells if cell.site_mean is not None))
        for k, variant in enumerate(variants)
    ]
    chart = budget_chart(words.label, series, references=own, bounded=words.bounded)
    note = "Each hospital counts the same, whatever its size. Bars: 95 % intervals over seeds (Student's t)."
    figures.append(Figure(f"{words.label}, mean of the training hospitals", chart, _legend(series), note))
    return [figure for figure in figures if figure.chart]


def hospitals(variant: Variant, metric: str) -> list[Figure]:
    """Each training hospital, and each held-out one."""
    titles = {"site": "Each training hospital's test patients", "held_out": "Held-out hospitals"}
    return [one for scope, title in titles.items() for one in _by_name(variant, scope, title, metric)]


def groups(variant: Variant, metric: str) -> list[Figure]:
    """Each column's groups, and how far apart they lie."""
    names = list(dict.fromkeys(name for cell in variant.cells for name in cell.of("group")))
    figures = []
    for column in dict.fromkeys(name.split("=", 1)[0] for name in names):
        figures += _by_name(variant, "group", f"Test patients by {column}", metric, prefix=f"{column}=")
    series = [
        Series(column, _look(k, 7), tuple(
            _point(cell, cell.group_gaps[column], "patients") for cell in variant.cells if column in cell.group_gaps))
        for k, column in enumerate(dict.fromkeys(name for cell in variant.cells for name in cell.group_gaps))
    ]
    chart = budget_chart("Gap between groups", series, from_zero=True)
    if chart:
        note = "Best group minus worst, which chance alone also makes; bars: mean of the runs' 95 % intervals over patients."
        figures.append(Figure("Gap between groups", chart, _legend(series), note))
    return figures


def gaps(variant: Variant, metric: str) -> list[Figure]:
    """What each budget loses against the references; positive is worse."""
    titles = {"non_private": "than without privacy", "pooled": "than pooled data", "local_only": "than each hospital alone"}
    series = [
        Series(words, _look(k, 7), tuple(_point(cell, cell.gaps[name], "seeds") for cell in variant.cells if name in cell.gaps))
        for k, (name, words) in enumerate(titles.items())
    ]
    label = metric_words(metric).label
    chart = budget_chart(f"How much worse in {label}", series, from_zero=True)
    note = "Paired by seed; bars: 95 % intervals over seeds. Below 0 the federation is better."
    return [Figure(f"How much worse in {label}", chart, _legend(series), note)] if chart else []


def attacks(cells: Sequence[Cell]) -> list[Figure]:
    """Each attack's figures against the budget, with the ceiling that the guarantee implies."""
    found = [cell for cell in cells if cell.attacks]
    figures = []
    for name in dict.fromkeys(name for cell in found for name in cell.attacks):
        metrics = dict.fromkeys(m for cell in found for m in cell.attacks.get(name, {}) if not m.startswith("ceiling_"))
        figures += [_attack(found, name, metric) for metric in _ATTACK_METRICS if metric in metrics]
    return [figure for figure in figures if figure.chart]


def _attack(cells: Sequence[Cell], name: str, metric: str) -> Figure:
    units = list(dict.fromkeys(cell.unit for cell in cells))
    series = []
    for k, unit in enumerate(units):
        mine = [cell for cell in cells if cell.unit == unit]
        for key, words, look in ((metric, "found", k), (f"ceiling_{metric}", "ceiling", k + 3)):
            points = [_point(c, c.attacks[name][key], "patients") for c in mine if key in c.attacks.get(name, {})]
            series.append(Series(f"{words}, {unit or 'no privacy'}", f"s{look % MOST_COLOURS}", tuple(points)))
    series = [one for one in series if one.points]
    limited = any(one.name.startswith("ceiling") for one in series)
    note = "Bars: 95 % intervals." + (" The ceiling is the most that the guarantee lets any attack reach." if limited else "")
    title = f"{humanise(name.replace('.', ' '))}: {_ATTACK_METRICS[metric]}"
    return Figure(title, budget_chart(title, series), _legend(series), note)


def _by_name(variant: Variant, scope: str, title: str, metric: str, prefix: str = "") -> list[Figure]:
    names = list(dict.fromkeys(name for cell in variant.cells for name in cell.of(scope) if name.startswith(prefix)))
    series = [
        Series(name.removeprefix(prefix), _look(k, len(names)), tuple(
            _point(cell, cell.of(scope)[name], "patients") for cell in variant.cells if name in cell.of(scope)))
        for k, name in enumerate(names)
    ]
    words = metric_words(metric)
    chart = budget_chart(f"{words.label}, {title}", series, bounded=words.bounded)
    few = len(names) <= MOST_COLOURS
    note = "Bars: mean of the runs' 95 % intervals over patients."
    note = note if few else "One line each; their names are on the marks, and in results.csv."
    legend = tuple((one.look, one.name) for one in series if one.points) if few else ()
    return [Figure(title, chart, legend, note)] if chart else []


def _look(number: int, of: int) -> str:
    return f"s{number}" if of <= MOST_COLOURS else "site"


def _point(cell: Cell, one: Estimate, over: str) -> Point:
    low, high = (one.low, one.high) if over == "seeds" else (one.patients_low, one.patients_high)
    return Point(cell.epsilon, one.mean, low, high)


def _legend(series: Sequence[Series]) -> tuple[tuple[str, str], ...]:
    return tuple((one.look, one.name) for one in series if one.points) if len(series) > 1 else ()


