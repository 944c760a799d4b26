"""Lesions, cases and volumes of predictions made up scan by scan."""

from collections.abc import Callable

import numpy as np
import pytest

from fedimaging.results import SiteEvaluation
from fedimaging.runs.lesion_tables import lesion_tables
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]
TASK = ("task={kind: segmentation, classes: 2, class_names: [none, lesion]}", "model={name: unet, options: {}}",
        "privacy=null")  # fmt: skip


def evaluation(
    site: str, lesions: list[int], found: list[int], wrong: list[int], true: list[int], seen: list[int]
) -> SiteEvaluation:
    columns = {"lesions": lesions, "lesions_found": found, "false_lesions": wrong, "size_true": true, "size_predicted": seen,
               "dice": [0.9 if f else 0.0 if n else np.nan for n, f in zip(lesions, found, strict=True)]}  # fmt: skip
    arrays = {name: np.array(values, float)[:, None] for name, values in columns.items()}
    return SiteEvaluation(site, 1, 0.0, len(lesions), {}, {**arrays, "patient": np.arange(len(lesions))}, "scores")


SITES = [
    evaluation("hospital_01", [2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 2, 0], [400, 100, 0, 0], [300, 200, 50, 0]),
    evaluation("hospital_02", [1, 0], [0, 0], [0, 0], [100, 0], [0, 0]),
    evaluation("hospital_03", [5, 5], [0, 0], [9, 9], [100, 100], [0, 0]),
]


def test_figures_are_those_counted_by_hand_over_the_training_hospitals(tiny_study: MakeStudy) -> None:
    study = tiny_study(*TASK, "hospitals.held_out=[hospital_03]")
    table = lesion_tables(study, SITES, (6.0, 6.0))
    assert table is not None
    one = table["classes"]["lesion"]
    assert table["unit"] == "cm²"
    assert one["lesions"]["n"] == 4
    assert (one["lesions"]["sensitivity"]["value"], one["lesions"]["sensitivity"]["n_patients"]) == (0.5, 3)
    assert one["lesions"]["false_per_case"]["value"] == pytest.approx(3 / 6)
    assert one["cases"]["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert one["cases"]["specificity"]["value"] == pytest.approx(2 / 3)
    assert one["cases"]["dice"]["50"] == 0.9
    differences = np.array([-100, 100, 50, 0, -100, 0]) * 0.36
    assert one["sizes"]["bias"]["value"] == pytest.approx(differences.mean())
    assert one["sizes"]["upper"]["value"] == pytest.approx(differences.mean() + 1.96 * differences.std(ddof=1))
    assert sorted(y for _, y in one["sizes"]["points"]) == pytest.approx(sorted(differences))
    assert table["hospitals"]["hospital_03"]["lesion"]["lesions"]["sensitivity"]["value"] == 0.0


def test_a_share_of_all_or_none_has_the_exact_limit(tiny_study: MakeStudy) -> None:
    table = lesion_tables(tiny_study(*TASK), SITES[1:2], None)
    assert table is not None
    assert table["unit"] == "pixels"
    found = table["classes"]["lesion"]["cases"]["specificity"]
    assert (found["value"], found["low"], found["n_patients"]) == (1.0, pytest.approx(0.025), 1)


def test_other_tasks_and_runs_without_masks_have_no_table(tiny_study: MakeStudy) -> None:
    assert lesion_tables(tiny_study(), [], None) is None
    assert lesion_tables(tiny_study(*TASK), [SiteEvaluation("a", 1, 0.0, 3, {"dice": 0.5})], None) is None
