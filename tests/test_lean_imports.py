"""Lean imports give the same networks and the same accounts as the whole libraries, and the whole stays within reach."""

import json
import subprocess
import sys

import pytest

_SCRIPT = """
import json, sys
lean = sys.argv[1] == "lean"
if lean:
    from fedimaging import lean_imports
    lean_imports.install()
import hashlib
import torch
from monai.networks import nets
names = {
    "DenseNet121": dict(spatial_dims=2, in_channels=1, out_channels=2),
    "UNet": dict(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,)),
    "SwinUNETR": dict(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2),
}
found = {}
for name, options in names.items():
    torch.manual_seed(0)
    state = getattr(nets, name)(**options).state_dict()
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    found[name] = digest.hexdigest()
found["modules"] = sum(name.startswith("monai.") for name in sys.modules)
if lean:
    import monai
    from monai.transforms import Compose, ScaleIntensity
    found["whole"] = [monai.metrics.DiceMetric.__name__, monai.__version__, type(Compose([ScaleIntensity()])).__name__]
    assert not hasattr(monai, "nothing_of_this_name") and not hasattr(nets, "nothing_of_this_name")
    assert "UNet" in nets.__all__
print(json.dumps(found))
"""


def _run(how: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _SCRIPT, how], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_a_lean_import_builds_the_same_networks_with_a_tenth_of_the_modules() -> None:
    lean, whole = _run("lean"), _run("whole")
    assert int(str(lean.pop("modules"))) * 10 < int(str(whole.pop("modules")))
    words = lean.pop("whole")
    assert isinstance(words, list)
    assert words[0] == "DiceMetric"
    assert words[1][0].isdigit()
    assert words[2] == "Compose"
    assert lean == whole


def test_installing_twice_or_after_monai_changes_nothing() -> None:
    script = (
        "import sys, types; from fedimaging import lean_imports; lean_imports.install(); lean_imports.install();"
        "n = len([f for f in sys.meta_path if type(f).__module__ == 'fedimaging.lean_imports']); assert n == 1, n;"
        "sys.meta_path.pop(0); sys.modules['monai'] = types.ModuleType('monai'); lean_imports.install();"
        "assert sys.meta_path[0].find_spec('monai.utils', None) is None; import dp_accounting.rdp;"
        "assert 'dp_accounting.pld' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


_ACCOUNT = """
import json, sys
if sys.argv[1] == "lean":
    from fedimaging import lean_imports
    lean_imports.install()
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
accountant = RdpAccountant()
accountant.compose(PoissonSampledDpEvent(0.016, GaussianDpEvent(1.0)), 3150)
print(json.dumps([accountant.get_epsilon(1e-5), "scipy.stats" in sys.modules]))
"""


def test_a_lean_accountant_says_the_same_without_half_of_scipy() -> None:
    answers = []
    for how in ("lean", "whole"):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", _ACCOUNT, how], capture_output=True, text=True, check=True)
        answers.append(json.loads(done.stdout))
    assert answers[0][0] == answers[1][0] == pytest.approx(6.091, abs=0.006)
    assert [answer[1] for answer in answers] == [False, True]
