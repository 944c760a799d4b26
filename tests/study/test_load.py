from pathlib import Path

import pytest
import yaml

from fedimaging.errors import StudyError
from fedimaging.study.load import load

CONFIGS = sorted(path for folder in ("", "recipes") for path in (Path(__file__).parents[2] / "configs" / folder).glob("*.yaml"))
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    study = load(path)
    again = tmp_path / "study.yaml"
    again.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
    assert load(again) == study
    assert load(again).fingerprint == study.fingerprint


def test_fingerprint_ignores_what_is_a_machines_own_and_nothing_else() -> None:
    study = load(QUICKSTART)
    assert load(QUICKSTART, ["data.root=/elsewhere", "runtime.workers=3", "runtime.device=cpu"]).fingerprint == study.fingerprint
    for override in ("seed=1", "privacy.target_epsilon=7", "training.learning_rate=0.4", "federation.rounds=11"):
        assert load(QUICKSTART, [override]).fingerprint != study.fingerprint


def test_an_override_replaces_one_key() -> None:
    study = load(QUICKSTART, ["federation.rounds=3", "privacy=null", "hospitals.held_out=[hospital_01]"])
    assert study.federation.rounds == 3
    assert study.privacy is None
    assert study.hospitals.held_out == ["hospital_01"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("federation.runds=3", ["federation.runds", "did you mean 'rounds'?"]),
        (
            "federation={noise_limit: 0.1, site_privacy: {clip_norm: 1.0, noise_multiplier: 1.0, delta: 0.01}}",
            ["noise_limit", "site_privacy"],
        ),
        ("training.learning_rate=fast", ["training.learning_rate='fast'", "number"]),
        ("federation.rounds=0", ["federation.rounds=0", "greater than or equal to 1"]),
        ("model.name=small_cn", ["small_cnn", "small_cn"]),
        ("privacy.noise_multiplier=1.0", ["exactly one"]),
        ("privacy.delta=2", ["privacy.delta=2", "less than 1"]),
        ("training.local_epochs=3", ["exactly one of local_epochs and local_steps"]),
        ("federation.algorithm=fedprox", ["proximal_mu"]),
        ("data.image_size=large", ["data.image_size"]),
        ("name=a b", ["name='a b'"]),
        ("no-equals-sign", ["not of the form"]),
        ("seed.deeper=1", ["single value"]),
    ],
)
def test_a_faulty_key_is_named_with_what_was_given_and_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(StudyError) as caught:
        load(QUICKSTART, [override])
    for word in words:
        assert word in str(caught.value)


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(StudyError, match="2 faults"):
        load(QUICKSTART, ["federation.rounds=0", "seed=-1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "not valid YAML"), ("- a\n- b\n", "no mapping"), ("x: !!python/object/apply:os.system [ls]\n", "not valid YAML")],
)
def test_files_that_are_no_studies(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=words):
        load(path)


def test_a_missing_file_and_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="does not exist"):
        load(tmp_path / "none.yaml")
    tree = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    del tree["privacy"]
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(StudyError, match="privacy is missing"):
        load(path)
