"""What a study may say about its data, and what is refused."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from fedimaging.data.spec import AugmentSpec, DataSpec, HospitalsSpec, PhantomSpec, SplitSpec


def test_defaults_are_flat_phantoms() -> None:
    spec = DataSpec()
    assert (spec.source, spec.image_size, spec.channels, spec.split.test) == ("phantoms", (64, 64), 1, 0.2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image_size": [64]}, "2 or 3 numbers"),
        ({"source": "manifest"}, "needs path"),
        ({"path": "x.csv"}, "needs source"),
        ({"spacing_mm": [1, 1, 1]}, "for volumes"),
        ({"phantoms": {"dims": 3}}, "does not fit"),
        ({"source": "medmnist", "path": "x.npz", "phantoms": {}}, "phantoms is set"),
        ({"columns": {"patient": "id"}}, "patient_id"),
        ({"image_sise": [64, 64]}, "image_sise"),
        ({"image_size": ["large", 64]}, "integer"),
        ({"split": {"test": 0.6, "validation": 0.4}}, "nobody to train"),
    ],
)
def test_data_that_makes_no_sense_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DataSpec(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"by": "iid"}, "needs count, sizes or names"),
        ({"by": "iid", "count": 3, "sizes": [1, 2]}, "disagree"),
        ({"by": "column", "count": 3}, "simulated"),
        ({"by": "iid", "names": ["a", "a"]}, "twice"),
        ({"by": "iid", "names": []}, "disagree"),
        ({"by": "iid", "count": 2, "sites": ["a"]}, "goes with by: column only"),
        ({"sites": ["a", "a"]}, "has a name twice"),
        ({"sites": []}, "must name a hospital that trains"),
        ({"sites": ["a"], "held_out": ["a"]}, "must name a hospital that trains"),
        ({"by": "label_skew", "count": 2, "alpha": 0}, "greater than 0"),
    ],
)
def test_hospitals_that_make_no_sense_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        HospitalsSpec(**given)


def test_simulated_hospitals_have_names() -> None:
    assert HospitalsSpec(by="iid", sizes=[3, 1]).site_names == ["hospital_01", "hospital_02"]
    assert HospitalsSpec(by="iid", names=["north", "south"]).site_names == ["north", "south"]


def test_ranges_are_checked() -> None:
    with pytest.raises(ValidationError, match="least, greatest"):
        PhantomSpec(scans_per_patient=(3, 1))
    with pytest.raises(ValidationError, match="each needs one"):
        PhantomSpec(patients=2, hospitals=3)
    with pytest.raises(ValidationError):
        AugmentSpec(shift=0.9)
    with pytest.raises(ValidationError):
        SplitSpec(test=1.0)


def test_reading_specs_imports_nothing_heavy() -> None:
    code = "import sys, fedimaging.data.spec; print(sorted({'torch', 'scipy', 'numpy', 'monai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
