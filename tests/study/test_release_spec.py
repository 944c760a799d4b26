"""The `release:` block goes with the rest of its study."""

from collections.abc import Callable

import pytest

from fedimaging.errors import StudyError
from fedimaging.study.schema import Study

MakeStudy = Callable[..., Study]


def test_a_study_without_the_block_keeps_its_fingerprint_and_one_with_it_has_another(tiny_study: MakeStudy) -> None:
    plain = tiny_study()
    assert plain.release is None
    assert tiny_study("release=null").fingerprint == plain.fingerprint
    limited = tiny_study("release={minimum_external: 0.8}")
    assert limited.fingerprint != plain.fingerprint
    assert tiny_study("release={minimum_external: 0.9}").fingerprint != limited.fingerprint


@pytest.mark.parametrize(("overrides", "said"), [
    (["release={minimum_external: 0.8}", "evaluation.metric=brier"], "needs a metric of which more is better"),
    (["release={minimum_count: 10}", "evaluation.groups=[sex]", "evaluation.minimum_group=5"], "raise it to that"),
    (["release={minimum_externl: 0.8}"], "did you mean 'minimum_external'"), (["release={audit: perhaps}"], "required"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(tiny_study: MakeStudy, overrides: list[str], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        tiny_study(*overrides)
