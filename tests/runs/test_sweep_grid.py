"""From a sweep's command line to its runs."""

import math
from pathlib import Path

import pytest
import yaml

from fedimaging.errors import StudyError
from fedimaging.runs.sweep_grid import Asked, PlannedRun, epsilons_of, expand, split_values, units_of

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
INF = math.inf


def _names(**asked: object) -> list[str]:
    return [run.name for run in expand(Asked(QUICKSTART, **asked))]  # type: ignore[arg-type]


def test_a_grid_is_budgets_by_units_by_seeds_and_non_private_runs_have_no_unit() -> None:
    assert _names(epsilons=(8, 0.5, INF), units=("patient", "record"), seeds=2) == [
        *(f"epsilon_{e}-{u}-seed_{s}" for e in ("0.5", "8") for u in ("patient", "record") for s in (0, 1)),
        "epsilon_inf-seed_0", "epsilon_inf-seed_1",
    ]


def test_every_run_is_the_base_study_but_for_its_place_in_the_grid() -> None:
    runs = {run.name: run for run in expand(Asked(QUICKSTART, (3, INF), ("record",), 1, ("federation.rounds=4",)))}
    private, plain = runs["epsilon_3-record-seed_0"].study, runs["epsilon_inf-seed_0"].study
    assert private.privacy is not None
    assert (private.privacy.target_epsilon, private.privacy.noise_multiplier, private.privacy.unit) == (3.0, None, "record")
    assert private.privacy.delta == 1e-4
    assert plain.privacy is None
    assert {study.federation.rounds for study in (private, plain)} == {4}
    assert private.model_copy(update={"privacy": None}) == plain


def test_the_unit_is_the_studys_own_unless_said_otherwise() -> None:
    assert _names(epsilons=(8,), overrides=("privacy.unit=record",), baselines=False) == ["epsilon_8-record-seed_0"]


def test_seeds_count_from_the_studys_own_and_leave_split_and_hospitals_alone() -> None:
    runs = expand(Asked(QUICKSTART, (INF,), seeds=3, overrides=("seed=7",)))
    assert [run.study.seed for run in runs] == [7, 8, 9]
    assert {run.study.data.split.seed for run in runs} == {0}
    assert {run.study.hospitals.seed for run in runs} == {0}


def test_a_budget_replaces_the_noise_that_a_study_names() -> None:
    noise = ("privacy.target_epsilon=null", "privacy.noise_multiplier=2")
    study = expand(Asked(QUICKSTART, (1,), overrides=noise, baselines=False))[0].study
    assert study.privacy is not None
    assert (study.privacy.target_epsilon, study.privacy.noise_multiplier) == (1.0, None)


def test_baselines_run_once_for_each_seed_and_choice_of_keys_with_the_non_private_run() -> None:
    asked = Asked(QUICKSTART, (1, 8), ("patient", "record"), 2, ("training.learning_rate=1,3",))
    with_baselines = [run for run in expand(asked) if run.baselines]
    assert [(run.epsilon, run.seed, run.keys) for run in with_baselines] == [
        (INF, seed, (("training.learning_rate", rate),)) for rate in ("1", "3") for seed in (0, 1)
    ]
    assert not [run for run in expand(Asked(QUICKSTART, (1, 8), baselines=False)) if run.baselines or run.epsilon == INF]


def test_keys_of_the_privacy_block_make_one_non_private_run() -> None:
    assert _names(epsilons=(8,), overrides=("privacy.clip_norm=0.5,1",)) == [
        "epsilon_8-patient-seed_0-clip_norm_0.5", "epsilon_inf-seed_0", "epsilon_8-patient-seed_0-clip_norm_1",
    ]


def test_the_first_seed_of_each_cell_is_audited() -> None:
    runs = expand(Asked(QUICKSTART, (1, INF), seeds=2, audit=True))
    assert [(run.epsilon, run.seed) for run in runs if run.audit] == [(1, 0), (INF, 0)]


@pytest.mark.parametrize(("text", "values"), [
    ("1,3", ["1", "3"]), ("[32,32]", ["[32,32]"]), ("[16,16],[32,32]", ["[16,16]", "[32,32]"]),
    ("{width: 4, depth: 2},{width: 8}", ["{width: 4, depth: 2}", "{width: 8}"]), ('"a,b",c', ['"a,b"', "c"]), ("x", ["x"]),
])
def test_a_comma_inside_brackets_or_quotes_belongs_to_its_value(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_values_that_no_folder_can_be_called_by_get_folders_of_their_own() -> None:
    names = _names(epsilons=(INF,), overrides=("data.image_size=[16,16],[16 ,16]",))
    assert len(set(names)) == 2
    assert all(name.startswith("epsilon_inf-seed_0-image_size_16_16_") for name in names)


@pytest.mark.parametrize(("asked", "words"), [
    ({"epsilons": (1,), "overrides": ("privacy=null",)}, "needs a study with a privacy block"),
    ({"epsilons": (INF,), "units": ("record",)}, "--unit record has no meaning"),
    ({"epsilons": (1,), "overrides": ("seed=1,2",)}, "--seeds"),
    ({"epsilons": (1,), "overrides": ("privacy.target_epsilon=1,2",)}, "--epsilon"),
    ({"epsilons": (1,), "overrides": ("training.learning_rate=1,-3",)}, "run epsilon_1-.*-learning_rate_3_.* has one fault"),
    ({"epsilons": (1,), "overrides": ("training.learning_rate=1,1",)}, "given twice"),
    ({"epsilons": (1,), "overrides": ("training.nonsense=1,2",)}, "not a known key"),
    ({"epsilons": (1,), "overrides": ("seed=one",)}, "seed='one' is no whole number"),
    ({"epsilons": (1,), "seeds": 0}, "at least one budget"),
    ({"epsilons": (1,), "overrides": ("data.image_size=[16,16",)}, "not closed"),
])
def test_what_cannot_be_swept_is_one_clear_error(asked: dict, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        expand(Asked(QUICKSTART, **asked))


def test_keys_that_end_alike_do_not_share_folders() -> None:
    names = _names(epsilons=(1,), overrides=("data.split.seed=1,2", "hospitals.seed=2,1"), baselines=False)
    assert len(set(names)) == 4


@pytest.mark.parametrize("text", ["0", "-1", "eight", "nan", "1,,2", ""])
def test_a_budget_is_a_number_above_0(text: str) -> None:
    with pytest.raises(StudyError, match="no number above 0"):
        epsilons_of(text)


def test_lists_of_the_command_line() -> None:
    assert epsilons_of("0.5, 8,inf") == (0.5, 8.0, INF)
    assert units_of("patient,record") == ("patient", "record")
    with pytest.raises(StudyError, match="given twice"):
        epsilons_of("8,8.0")
    with pytest.raises(StudyError, match="none of patient, record"):
        units_of("hospital")


def test_a_study_without_privacy_can_be_swept_at_infinity(tmp_path: Path) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8")) | {"privacy": None}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(tree))
    runs: list[PlannedRun] = expand(Asked(tmp_path / "plain.yaml", (INF,)))
    assert [(run.name, run.baselines) for run in runs] == [("epsilon_inf-seed_0", True)]
