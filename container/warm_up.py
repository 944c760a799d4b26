"""Run in the image while it is built: import every module of the installed package, and train a federation for a round with
privacy. What is missing ends the build; what is used is compiled, because a container starts on a disk that it can't write.
"""

import importlib
import pkgutil
import tempfile
from pathlib import Path

import yaml

import fedimaging
from fedimaging.cli import app

STUDY = {
    "name": "warm-up", "data": {"source": "phantoms", "image_size": [16, 16], "channels": 1,
                                "phantoms": {"patients": 36, "hospitals": 3}},
    "task": {"kind": "binary", "label": "lesion"}, "hospitals": {"by": "column", "column": "site"},
    "model": {"name": "small_cnn", "options": {"width": 4}},
    "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 8, "local_steps": 2},
    "privacy": {"target_epsilon": 8.0, "delta": 1e-3}, "federation": {"rounds": 1},
    "evaluation": {"resamples": 100}, "runtime": {"device": "cpu"},
}  # fmt: skip

if __name__ == "__main__":
    for module in pkgutil.walk_packages(fedimaging.__path__, "fedimaging."):
        importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder, "study.yaml")
        study.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
        app(["simulate", str(study), "--out", f"{folder}/run", "--workers", "1", "--quiet"], standalone_mode=False)
