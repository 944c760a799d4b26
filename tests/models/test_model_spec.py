import subprocess
import sys

import pytest
from pydantic import ValidationError

from fedimaging.errors import StudyError
from fedimaging.models.spec import ModelSpec


def test_defaults_and_json() -> None:
    spec = ModelSpec()
    assert (spec.name, spec.norm, spec.trainable) == ("small_cnn", "group", "all")
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_an_unknown_model_or_option_is_refused_at_once() -> None:
    with pytest.raises(StudyError, match=r"model\.name='small_cn' is not known; did you mean 'small_cnn'"):
        ModelSpec(name="small_cn")
    with pytest.raises(StudyError, match="did you mean 'width'"):
        ModelSpec(options={"widht": 3})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"norm": "frozen"}, "give weights or norm 'group'"),
        ({"weights_sha256": "0" * 64}, "without weights"),
        ({"weights": "a.pth", "weights_sha256": "xyz"}, "pattern"),
        ({"trainable": "some"}, "'all', 'head', 'norm' or 'lora'"),
        ({"nmae": "unet"}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_together(fields: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ModelSpec.model_validate(fields)


def test_specs_are_light() -> None:
    code = (
        "import sys, fedimaging.models.spec, fedimaging.training.task_spec; "
        "print([m for m in ('torch', 'monai', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
