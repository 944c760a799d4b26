"""The table of a sweep, for a text: Markdown, and LaTeX with booktabs. The same runs give the same bytes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fedimaging.runs.report_text import humanise, metric_words
from fedimaging.runs.sweep_grid import epsilon_word
from fedimaging.runs.sweep_summary import Cell, Estimate

_NONE = "–"


@dataclass(frozen=True)
class SweepTable:
    """Heads and rows of text; `caption` says what the figures are. The first `lead` columns name a cell, the last `gaps`
    compare it."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    lead: int
    gaps: int

    def parts(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """(heads, rows) of the results and, where there are any, of the gaps: two tables that a page has room for."""
        edge = len(self.heads) - self.gaps
        results = (self.heads[:edge], [row[:edge] for row in self.rows])
        gaps = (self.heads[: self.lead] + self.heads[edge:], [row[: self.lead] + row[edge:] for row in self.rows])
        return [results, gaps] if self.gaps else [results]


def sweep_table(cells: Sequence[Cell], metric: str, axes: Sequence[str], n_seeds: int) -> SweepTable:
    """One row a cell: result, held-out hospitals, worst hospital, worst group, and the gaps; a column that nobody fills is
    left out."""
    words = metric_words(metric)
    heads = ["ε", "Unit", *axes, "Trained", words.label, "Held out", "Mean of hospitals", "Worst hospital", "Worst group",
             "Below non-private", "Below pooled", "Above local only"]
    if words.lower_is_better:
        heads[-3:] = ["Above non-private", "Above pooled", "Below local only"]
    rows = [_row(cell, axes, words.digits) for cell in cells]
    filled = [k for k in range(len(heads)) if k < 2 or any(row[k] != _NONE for row in rows)]
    over = f"mean of {n_seeds} seeds with a 95 % interval over seeds" if n_seeds > 1 else "one seed, 95 % interval over patients"
    lead, first_gap = 3 + len(axes), len(heads) - 3
    caption = (
        f"{words.label} on test patients, {over}; of a single hospital or group over its patients. Gaps are paired by seed; "
        "that to local only is between means of hospitals."
    )
    return SweepTable(
        tuple(heads[k] for k in filled), tuple(tuple(row[k] for k in filled) for row in rows), caption,
        lead=sum(k < lead for k in filled), gaps=sum(k >= first_gap for k in filled),
    )


def _row(cell: Cell, axes: Sequence[str], digits: int) -> list[str]:
    keys, sites, groups = dict(cell.keys), cell.of("site"), cell.of("group")
    worst_site, worst_group = cell.worst("site"), cell.worst("group")
    below = [_figure(cell.gaps.get(name), digits) for name in ("non_private", "pooled")]
    return [
        "∞" if math.isinf(cell.epsilon) else epsilon_word(cell.epsilon), cell.unit or _NONE,
        *(keys.get(axis, _NONE) for axis in axes), humanise(cell.arm).lower(),
        _figure(cell.test, digits), _figure(cell.places.get(("held_out", "")), digits),
        _figure(cell.site_mean, digits),
        _NONE if worst_site is None else f"{worst_site} {figure_over_patients(sites[worst_site], digits)}",
        _NONE if worst_group is None else f"{worst_group} {figure_over_patients(groups[worst_group], digits)}",
        *below, _figure(_turned(cell.gaps.get("local_only")), digits),
    ]


def _turned(one: Estimate | None) -> Estimate | None:
    """What a federation gains over a hospital alone is the gap the other way round."""
    if one is None:
        return None
    low, high = (None if x is None else -x for x in (one.high, one.low))
    return Estimate(-one.mean, low, high, None, None, one.n_seeds, one.n_patients)


def _figure(one: Estimate | None, digits: int) -> str:
    """`0.931 (0.912 to 0.949)`: over seeds, or over patients where there is one seed."""
    if one is None:
        return _NONE
    if one.low is None or one.high is None:
        return figure_over_patients(one, digits)
    return _with(one, one.low, one.high, digits)


def figure_over_patients(one: Estimate, digits: int) -> str:
    """`0.931 (0.912 to 0.949)`, the interval over patients."""
    return _with(one, one.patients_low, one.patients_high, digits)


def _with(one: Estimate, low: float | None, high: float | None, digits: int) -> str:
    spread = f" ({low:z.{digits}f} to {high:z.{digits}f})" if low is not None and high is not None else ""
    return f"{one.mean:z.{digits}f}{spread}"


def markdown(table: SweepTable) -> str:
    """A Markdown table with its caption above."""
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join("---" for _ in table.heads) + "|"
    return "\n".join([table.caption, "", line(table.heads), rule, *(line(row) for row in table.rows)]) + "\n"


def latex(table: SweepTable) -> str:
    """A LaTeX table; needs \\usepackage{booktabs}."""
    def line(cells: Sequence[str]) -> str:
        return " & ".join(_tex(cell) for cell in cells) + r" \\"

    return "\n".join([
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.caption)}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.heads)}}}", r"\toprule", line(table.heads), r"\midrule",
        *(line(row) for row in table.rows), r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]) + "\n"


_TEX = {"ε": r"$\varepsilon$", "∞": r"$\infty$", "–": "--", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$"}


def _tex(text: str) -> str:
    return re.sub(r"[ε∞–\\~^<>&%$#_{}]", lambda found: _TEX.get(found[0], "\\" + found[0]), text)
