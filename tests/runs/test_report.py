"""The page: complete in itself, honest where something is missing, and never stronger than the run's figures."""

import json
import re
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedimaging.errors import RunError
from fedimaging.runs.pictures import example_panel, save_png
from fedimaging.runs.report import compare, write_page

ROUNDS = 60
HOSPITALS = {  # patients, scans, test patients, prevalence, AUROC
    "hospital_01": (612, 1340, 122, 0.31, 0.941),
    "hospital_02": (488, 1102, 98, 0.22, 0.928),
    "hospital_03": (401, 880, 80, 0.44, 0.902),
    "hospital_04": (350, 771, 70, 0.18, 0.934),
    "hospital_05": (289, 640, 58, 0.27, 0.871),
    "hospital_06": (61, 118, 12, 0.09, None),
}
HELD_OUT = (233, 520, 233, 0.35, 0.887)


def interval(value: float | None, half: float, n: int) -> dict[str, float | int | None]:
    low, high = (None, None) if value is None else (round(value - half, 4), round(value + half, 4))
    return {"value": value, "low": low, "high": high, "n_patients": n}


def classification(auroc: float | None, n: int) -> dict[str, Any]:
    half = min(0.35 / n**0.5, 1 - (auroc or 0))
    lower = {"average_precision": 0.08, "balanced_accuracy": 0.07, "sensitivity_at_90_specificity": 0.12}
    metrics = {"auroc": interval(auroc, half, n)}
    metrics |= {m: interval(None if auroc is None else round(auroc - gap, 3), half, n) for m, gap in lower.items()}
    return metrics | {"brier": interval(0.11, 0.02, n)}


def spent(epsilon: float, steps: int) -> dict[str, Any]:
    return {
        "unit": "patient", "epsilon": epsilon, "delta": 1e-4, "budget_epsilon": 8.0, "accountant": "PLD",
        "steps": steps, "noise_multiplier": 0.8137, "sample_rate": 0.0833, "epsilon_rdp": round(epsilon * 1.06, 4),
        "noise": "secure",
    }


def one_site(row: tuple, privacy: dict[str, Any] | None, role: str = "train") -> dict[str, Any]:
    patients, scans, test, prevalence, auroc = row
    return {
        "role": role, "patients": patients, "scans": scans, "test_patients": test,
        "prevalence": {"no lesion": 1 - prevalence, "lesion": prevalence}, "test": classification(auroc, test),
        "privacy": privacy, "refused": {},
    }


def rounds_of(generator: np.random.Generator) -> list[dict[str, Any]]:
    rounds = []
    for number in range(1, ROUNDS + 1):
        grown = 1 - np.exp(-number / 14)
        level = {name: 0.55 + ((row[4] or 0.9) - 0.55) * grown + generator.normal(0, 0.008)
                 for name, row in {**HOSPITALS, "hospital_07": HELD_OUT}.items()}
        evaluated = number % 3 == 0
        joined = [name for name in HOSPITALS if not (name == "hospital_05" and number > 57)]
        rounds.append({
            "round": number, "sites": joined,
            "refused": {} if number <= 57 else {"hospital_05": "budget_exceeded"},
            "metrics": {"auroc": 0.55 + 0.375 * grown, "loss": 0.69 - 0.36 * grown} if evaluated else {},
            "site_metrics": {n: {"auroc": v, "loss": 1.2 - v} for n, v in level.items()} if evaluated else {},
            "epsilon": {name: 7.98 * (min(number, 57 if name == "hospital_05" else 60) / 60) ** 0.62
                        * (1 - 0.03 * k) for k, name in enumerate(HOSPITALS)},
            "update_norm": float(1.9 * np.exp(-number / 25) + 0.35 + generator.normal(0, 0.05)),
            "seconds": {"training": 9.1, "evaluation": 1.2 if evaluated else 0.0}, "bytes_per_site": 28_412_880,
        })
    return rounds


def sample_report() -> dict[str, Any]:
    """Six training hospitals, one of them too small to judge and one out of budget, and one held out."""
    rounds = rounds_of(np.random.default_rng(0))
    sites = {n: one_site(row, spent(round(rounds[-1]["epsilon"][n], 4), 720)) for n, row in HOSPITALS.items()}
    sites["hospital_05"]["refused"] = {"58": "budget_exceeded", "59": "budget_exceeded", "60": "budget_exceeded"}
    sites["hospital_07"] = one_site(HELD_OUT, None, "held_out")
    worse = {n: classification(round((row[4] or 0.9) - 0.07, 3), row[2]) for n, row in HOSPITALS.items()}
    better = {n: classification(round((row[4] or 0.9) + 0.012, 3), row[2]) for n, row in HOSPITALS.items()}
    return {
        "schema": "fedimaging-report/1", "name": "Chest phantoms, DP-SGD per patient",
        "created": "2025-11-23 14:20 UTC",
        "study": {
            "name": "phantoms-dp", "seed": 7, "data": {"source": "phantoms", "image_size": [64, 64], "channels": 1},
            "model": {"name": "densenet", "norm": "group"}, "rounds": ROUNDS,
            "privacy": {"unit": "patient", "target_epsilon": 8.0, "delta": 1e-4, "clip_norm": 1.0},
        },
        "fingerprint": "8c1f0a6b4e9d27315fb02c6de8a941730d5ce6f8b24a91e7733f06c5d1a2b8e4", "seed": 7,
        "versions": {"fedimaging": "0.1.0", "torch": "2.9.0", "monai": "1.5.1", "flwr": "1.41.0"},
        "machine": {"cpu": "AMD EPYC 7B13", "cores": 16, "memory_gb": 125.6, "device": "NVIDIA H100"},
        "task": {"kind": "binary", "class_names": ["no lesion", "lesion"], "primary_metric": "auroc"},
        "model": {"name": "densenet121", "parameters": 6_955_906, "trainable_parameters": 6_955_906},
        "rounds": rounds, "test": classification(0.925, 440), "held_out": classification(0.887, 233), "sites": sites,
        "baselines": {
            "pooled": {"test": classification(0.944, 440), "held_out": classification(0.901, 233), "sites": better},
            "local_only": {"test": classification(0.853, 440), "held_out": classification(0.78, 233), "sites": worse},
        },
        "privacy": {
            "unit": "patient",
            "statement": "Each hospital trained with differential privacy: every patient, with all of their scans, is "
                         "protected before anything leaves the hospital.",
            "not_protected": ["A patient who was scanned at two hospitals: their two epsilons add up.",
                              "Test metrics and patient counts on this page: published without noise.",
                              "Which hospitals took part."],
            "engine": {"name": "vmap", "reason": "fastest engine that is exact for this model"},
        },
        "seconds": {"total": 683.0, "training": 548.0, "evaluation": 71.0, "start": 24.0},
        "bytes_per_round_per_site": 28_412_880, "peak_memory_mb": 3412.0, "workers": 4,
        "pictures": {"contact_sheet": "pictures/contact_sheet.png", "examples": [
            {"file": f"pictures/example_{k}.png", "site": f"hospital_0{k + 1}", "patient_index": 11 * k + 3,
             "truth": "lesion" if k % 2 else "no lesion", "prediction": "no lesion" if k == 3 else "lesion" if k % 2
             else "no lesion", "score": 0.91 - 0.12 * k} for k in range(5)]},
    }


def make_run(folder: Path, report: dict[str, Any], *, with_pictures: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    if with_pictures:
        rows, columns = np.mgrid[:64, :64]
        for k in range(5):
            body = np.exp(-((rows - 32) ** 2 + (columns - 32) ** 2) / 500.0) + 0.1 * np.sin(columns / (2 + k))
            save_png(example_panel(body[None], None, None), folder / f"pictures/example_{k}.png")
        save_png(Image.new("RGB", (640, 200), (60, 60, 60)), folder / "pictures/contact_sheet.png")
    return folder


def page_of(folder: Path, report: dict[str, Any], **options: bool) -> str:
    return write_page(make_run(folder, report, **options)).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """What a reader sees, without tags, on single spaces."""
    class Text(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.words: list[str] = []
            self.hidden = ""

        def handle_starttag(self, tag: str, attrs: list) -> None:
            self.hidden = tag if tag in ("style", "script") else ""

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                self.words.append(data)

    reader = Text()
    reader.feed(page)
    return re.sub(r"\s+", " ", " ".join(reader.words))


def test_the_summary_tells_who_what_how_well_and_how_protected(tmp_path: Path) -> None:
    words = words_of(page_of(tmp_path, sample_report(), with_pictures=True))
    assert (
        "6 hospitals with 2,201 patients trained densenet121 (7.0 M parameters) for 60 rounds; "
        "AUROC 0.93 (0.91–0.94) on 440 test patients; "
        "each patient is protected by (ε = 7.98, δ = 1×10⁻⁴) at their own hospital."
    ) in words


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, sample_report(), with_pictures=True)
    assert page.count("data:image/png;base64,") == 6
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert not list(tmp_path.glob(".*"))


def test_every_hospital_has_its_result_its_role_and_what_it_spent(tmp_path: Path) -> None:
    words = words_of(page_of(tmp_path, sample_report()))
    for said in ("0.941 (0.909–0.973)", "hospital_07 held out", "nothing: did not train", "ε = 7.98 of 8", "lesion 31 %"):
        assert said in words
    assert "Refused rounds 58–60: its privacy budget would have been passed" in words
    assert "not defined (one class)" in words


def test_a_run_without_privacy_says_so_first(tmp_path: Path) -> None:
    report = sample_report() | {"privacy": None}
    for site in report["sites"].values():
        site["privacy"] = None
    words = words_of(page_of(tmp_path, report))
    assert "no privacy protection was used." in words
    assert words.index("No privacy protection This model") < words.index("Who trained")
    assert "is protected by" not in words


def test_one_hospital_without_a_figure_spoils_the_claim(tmp_path: Path) -> None:
    report = sample_report()
    report["sites"]["hospital_03"]["privacy"] = None
    words = words_of(page_of(tmp_path, report))
    assert "not every hospital’s patients are protected" in words
    assert "hospital_03: trained, but without an accounted epsilon" in words


def test_simulated_noise_is_never_called_protection(tmp_path: Path) -> None:
    report = sample_report()
    report["sites"]["hospital_02"]["privacy"]["noise"] = "simulated"
    words = words_of(page_of(tmp_path, report))
    assert "Simulated noise: not secure" in words
    assert "is protected by" not in words
    assert "Simulated (not secure)" in words


def test_scan_level_protection_is_told_from_patient_level(tmp_path: Path) -> None:
    report = sample_report()
    report["sites"]["hospital_02"]["privacy"]["unit"] = "record"
    assert "each scan (not each patient) is protected by" in words_of(page_of(tmp_path, report))


@pytest.mark.parametrize("key", sorted(set(sample_report()) - {"schema"}))
@pytest.mark.parametrize("how", ["absent", "null"])
def test_any_part_may_be_missing(tmp_path: Path, key: str, how: str) -> None:
    report = sample_report()
    if how == "absent":
        del report[key]
    else:
        report[key] = None
    words = words_of(page_of(tmp_path, report))
    assert "Privacy statement" in words
    assert "None" not in words
    assert "nan" not in words.lower().split()


def test_a_report_of_nothing_is_still_a_page(tmp_path: Path) -> None:
    words = words_of(page_of(tmp_path / "empty", {"schema": "fedimaging-report/1"}))
    assert "An unknown number of hospitals trained a model for an unknown number of rounds" in words


def test_names_from_a_study_cannot_become_markup(tmp_path: Path) -> None:
    report = sample_report() | {"name": "<script>alert(1)</script>"}
    report["sites"]["<img src=x onerror=alert(1)>"] = report["sites"].pop("hospital_01")
    page = page_of(tmp_path, report)
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_segmentation_examples_are_not_judged_right_or_wrong(tmp_path: Path) -> None:
    report = sample_report()
    report["task"] = {"kind": "segmentation", "class_names": ["lesion"], "primary_metric": "hd95_mm"}
    report["test"] = {"hd95_mm": interval(4.21, 0.62, 440)}
    report["pictures"]["examples"][0] |= {"truth": "532 voxels", "prediction": "498 voxels", "score": 0.83}
    words = words_of(page_of(tmp_path, report, with_pictures=True))
    assert "HD95 (mm) 4.2 (3.6–4.8)" in words
    assert "Dice 0.83 truth: 532 voxels, predicted: 498 voxels" in words
    assert "✗" not in words


def test_a_missing_picture_is_named_and_a_foreign_one_refused(tmp_path: Path) -> None:
    assert "The picture is missing in the run folder." in words_of(page_of(tmp_path, sample_report()))
    report = sample_report()
    report["pictures"]["contact_sheet"] = "../outside.png"
    with pytest.raises(RunError, match="inside the run folder"):
        write_page(make_run(tmp_path, report))


@pytest.mark.parametrize(("text", "complaint"), [
    (None, "missing"), ("{", "cannot be read"), ("[]", "schema=None"), ('{"schema": "other/1"}', "schema='other/1'"),
])
def test_only_a_report_of_this_schema_is_drawn(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunError, match=complaint):
        write_page(tmp_path)


def test_compare_shows_results_differences_and_doubts(tmp_path: Path) -> None:
    other = deepcopy(sample_report())
    other["name"], other["study"]["privacy"], other["test"] = "No noise", None, classification(0.941, 400)
    for site in other["sites"].values():
        site["privacy"] = None
    runs = [make_run(tmp_path / "a", sample_report()), make_run(tmp_path / "b", other)]
    words = words_of(compare(runs, tmp_path / "out" / "compare.html").read_text(encoding="utf-8"))
    for said in ("2 runs", "privacy.target_epsilon 8.0 –", "Different test patients", "ε = 7.98", "0.941 (0.923–0.959)"):
        assert said in words
    assert "model.name" not in words


def test_compare_tells_runs_of_one_name_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, sample_report()) for name in ("first", "second")]
    words = words_of(compare(runs, tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "Chest phantoms, DP-SGD per patient (first)" in words
    assert "Nothing: the resolved studies are the same." in words
    with pytest.raises(RunError, match="at least one run"):
        compare([], tmp_path / "compare.html")
