"""From made-up run folders to tables and page."""

import csv
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fedimaging.runs.sweep_collect import collect
from fedimaging.runs.sweep_dir import SweepDir
from fedimaging.runs.sweep_grid import PlannedRun
from fedimaging.runs.sweep_rows import rows_of
from fedimaging.runs.sweep_summary import cells_of
from fedimaging.runs.sweep_tables import sweep_table
from tests.runs.made_up_sweep import arm, attack, interval, planned, report, write

SITES = {"north": 0.81, "south": 0.79}


def _sweep(tmp_path: Path, *, verdict: str = "consistent", leave_out: int = 0) -> tuple[SweepDir, list[PlannedRun]]:
    folder, runs = SweepDir(tmp_path / "sweep"), planned((1.0, 8.0, math.inf), audit=True)
    groups = {"sex": {"F": {"auroc": interval(0.9)}, "M": {"auroc": interval(0.7)}}}
    gaps = {"sex": {"metric": "auroc", "best": "F", "worst": "M", **interval(0.2), "p_value": 0.01}}
    for run in runs[leave_out:]:
        value = 0.9 if math.isinf(run.epsilon) else 0.7 + run.epsilon / 100 + run.seed / 100
        baselines = {"pooled": arm(0.91), "local_only": arm(0.7)} if run.baselines else {}
        tree = report(run, value, SITES, baselines=baselines, groups=groups, group_gaps=gaps)
        write(folder, run, tree, attack(verdict) if run.audit else None)
    return folder, runs


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_results_csv_has_one_figure_a_row(tmp_path: Path) -> None:
    folder, runs = _sweep(tmp_path)
    collect(folder, runs, tuned_on="phantoms")
    rows = _read(folder.path / "results.csv")
    assert ",".join(rows[0]) == "run,epsilon,unit,seed,arm,scope,name,metric,value,low,high,n_patients"
    one = next(r for r in rows if (r["run"], r["scope"]) == ("epsilon_8-patient-seed_1", "test"))
    assert (one["epsilon"], one["unit"], one["seed"], one["arm"], one["metric"]) == ("8", "patient", "1", "federated", "auroc")
    assert (one["value"], one["low"], one["high"], one["n_patients"]) == ("0.79", "0.74", "0.84", "40")
    assert {r["scope"] for r in rows} == {"test", "site", "site_mean", "group", "attack"}
    assert {(r["arm"], r["epsilon"], r["unit"]) for r in rows if r["arm"] != "federated"} == {
        ("pooled", "inf", ""), ("local_only", "inf", ""),
    }
    keys = [tuple(r[k] for k in ("run", "arm", "scope", "name", "metric")) for r in rows]
    assert len(set(keys)) == len(keys)


def test_runs_csv_holds_what_depends_on_the_day(tmp_path: Path) -> None:
    folder, runs = _sweep(tmp_path)
    collect(folder, runs, tuned_on="phantoms")
    rows = _read(folder.path / "runs.csv")
    assert [row["run"] for row in rows] == [run.name for run in runs]
    first = [rows[0][name] for name in ("epsilon_spent", "delta", "seconds", "peak_memory_mb")]
    assert first == ["1", "0.0001", "12.5", "500"]
    assert rows[-1]["epsilon_spent"] == ""
    for name in ("results.csv", "summary.json", "table.md", "table.tex"):
        assert "12.5" not in (folder.path / name).read_text(encoding="utf-8")


def test_collecting_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder, runs = _sweep(tmp_path)
    names = ("results.csv", "runs.csv", "summary.json", "table.md", "table.tex", "sweep.html")
    collect(folder, runs, tuned_on="phantoms")
    before = {name: (folder.path / name).read_bytes() for name in names}
    collect(folder, runs, tuned_on="phantoms")
    assert {name: (folder.path / name).read_bytes() for name in names} == before


def test_the_page_has_room_for_results_and_gaps_in_two_tables() -> None:
    rows = [row for run in planned() for row in rows_of(run, report(run, 0.8, SITES), None)]
    results, gaps = sweep_table(cells_of(rows, "auroc"), "auroc", [], 2).parts()
    assert results[0] == ("ε", "Unit", "Trained", "AUROC", "Mean of hospitals", "Worst hospital")
    assert gaps[0] == ("ε", "Unit", "Trained", "Below non-private")
    assert gaps[1] == [("1", "patient", "federated", "0.000 (0.000 to 0.000)"), ("∞", "–", "federated", "–")]


def test_the_tables_for_a_text(tmp_path: Path) -> None:
    folder, runs = _sweep(tmp_path)
    collect(folder, runs, tuned_on="phantoms")
    markdown = (folder.path / "table.md").read_text(encoding="utf-8").splitlines()
    heads = "| ε | Unit | Trained | AUROC | Mean of hospitals | Worst hospital | Worst group | Below non-private |"
    assert markdown[2].startswith(heads)
    figures = "0.715 (0.651 to 0.779) | 0.800 (0.800 to 0.800) | south 0.790 (0.690 to 0.890) |"
    assert markdown[4].startswith(f"| 1 | patient | federated | {figures}")
    assert len(markdown) == 4 + 5
    latex = (folder.path / "table.tex").read_text(encoding="utf-8")
    assert r"\toprule" in latex
    assert r"$\varepsilon$ & Unit & Trained" in latex
    assert r"local only" in latex
    assert r"95 \% interval" in latex


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.outside = "", [], []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") and value and not value.startswith("#")]

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(folder: SweepDir) -> _Text:
    read = _Text()
    read.feed((folder.path / "sweep.html").read_text(encoding="utf-8"))
    return read


def test_the_page_says_what_it_must(tmp_path: Path) -> None:
    folder, runs = _sweep(tmp_path)
    assert collect(folder, runs, tuned_on="generated phantoms") == ()
    page = _page(folder)
    for words in (
        "1×10⁻⁴, at most", "differ by one such unit, added or removed", "the server, the other hospitals and the public",
        "Settings were chosen ongenerated phantoms", "each is a world of its own", "would be charged",
        "The guarantee covers <one> patient.", "Test patients by sex", "Gap between groups",
        "Each training hospital's test patients", "How much worse in AUROC", "found at 1 % false alarms", "loss threshold",
        "0.200 (0.150 to 0.250)", "p of each seed", "0.01, 0.01",
        "consistent", "intervals over seeds", "intervals over patients",
    ):
        assert words in page.text.replace("\n", ""), words
    assert page.outside == []
    assert page.tags.count("svg") > 8


def test_a_violation_is_returned_and_stands_at_the_head(tmp_path: Path) -> None:
    folder, runs = _sweep(tmp_path, verdict="violation")
    found = collect(folder, runs, tuned_on="not stated")
    assert found == tuple(f"epsilon_{e}-seed_0: loss threshold" for e in ("1-patient", "8-patient", "inf"))
    assert "An attack found more than the guarantee allows" in _page(folder).text
    assert "the choice itself is not covered by any ε" in _page(folder).text


def test_an_unfinished_sweep_says_so_and_one_without_runs_writes_nothing(tmp_path: Path) -> None:
    folder, runs = _sweep(tmp_path, leave_out=2)
    collect(folder, runs, tuned_on="phantoms")
    assert "2 of 6 runs are not finished" in _page(folder).text
    empty = SweepDir(tmp_path / "empty")
    assert collect(empty, runs, tuned_on="phantoms") == ()
    assert not empty.path.exists()


def test_keys_have_columns_of_their_own(tmp_path: Path) -> None:
    folder = SweepDir(tmp_path / "sweep")
    runs = planned((1.0, math.inf), 1, overrides=("training.learning_rate=1,3", "privacy.clip_norm=0.5,1"))
    for run in runs:
        write(folder, run, report(run, 0.8))
    collect(folder, runs, tuned_on="phantoms")
    rows = _read(folder.path / "runs.csv")
    assert [(r["epsilon"], r["training.learning_rate"], r["privacy.clip_norm"]) for r in rows if r["epsilon"] == "inf"] == [
        ("inf", "1", ""), ("inf", "3", ""),
    ]
    assert "training.learning_rate" in (folder.path / "table.md").read_text(encoding="utf-8")
