"""The release as a MONAI bundle: MONAI's own command line verifies and runs it, on a machine without fedimaging.

The network is TorchScript, because what makes it safe for per-patient gradients (its normalisation layers) is no option of
MONAI's networks. Reading and preparing scans is this package's own code, copied, with its imports turned to the copies.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedimaging import __version__
from fedimaging.files import write_json, write_text
from fedimaging.runs import machine
from fedimaging.study.schema import Study
from fedimaging.training.tasks import make_task

_COPIED = ("errors", "spec", "data.spec", "data.scan", "data.dicom", "data.readers", "data.transforms", "release.inference")
_REQUIRED = {"fire": "0.5", "pydantic": "2.7", "pillow": "10", "nibabel": "5", "pydicom": "3", "scipy": "1.11"}
_IMPORT = re.compile(r"^(\s*)from fedimaging\.([\w.]+) import ", re.MULTILINE)
_OFFICIAL_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def write_bundle(
    folder: Path, study: Study, data: dict[str, Any], calibration: dict[str, Any] | None, facts: dict[str, Any]
) -> None:
    """Write everything of the bundle but models/ into `folder`.

    data: the `data:` block without paths. facts: `intended_use`, `figures` (metric -> value), `approved_by`, `created`.
    """
    write_json(folder / "configs" / "metadata.json", metadata(study, facts))
    write_json(folder / "configs" / "inference.json", inference(study, data, calibration))
    write_json(folder / "docs" / "metadata_schema.json", SCHEMA)
    write_text(folder / "docs" / "README.md", _readme(study))
    write_text(folder / "LICENSE", _LICENCE.format(name=study.name, who=facts["approved_by"]))
    for name in _COPIED:
        write_text(folder / "scripts" / f"{name.replace('.', '_')}.py", _turned(_source(name)))
    write_text(folder / "scripts" / "__init__.py", '"""Copied from fedimaging: how scans are read and prepared."""\n')


def _source(name: str) -> str:
    package, _, module = f"fedimaging.{name}".rpartition(".")
    return (files(package) / f"{module}.py").read_text(encoding="utf-8")


def _turned(text: str) -> str:
    """`from fedimaging.data.scan import` becomes `from scripts.data_scan import`."""
    return _IMPORT.sub(lambda found: f"{found[1]}from scripts.{found[2].replace('.', '_')} import ", text)


def metadata(study: Study, facts: dict[str, Any]) -> dict[str, Any]:
    """configs/metadata.json, by MONAI's bundle specification."""
    versions, task, data = machine.versions(), make_task(study.task), study.data
    classes = {str(k): name for k, name in enumerate(task.class_names)}
    spatial = list(data.image_size)
    unit = data.intensity in ("unit", "percentile")
    image = {
        "type": "image", "format": "magnitude", "modality": "n/a", "num_channels": data.channels, "spatial_shape": spatial,
        "dtype": "float32", "value_range": [0, 1] if unit else [], "is_patch_data": False,
        "channel_def": {str(k): f"channel {k}" for k in range(data.channels)},
    }
    output = {
        "type": "image" if task.needs_mask else "probabilities", "format": "logits", "num_channels": task.out_channels,
        "spatial_shape": spatial if task.needs_mask else [1], "dtype": "float32", "value_range": [], "is_patch_data": False,
        "channel_def": classes,
    }
    return {
        "schema": _OFFICIAL_SCHEMA, "version": "1.0.0", "changelog": {"1.0.0": f"released {facts['created']}"},
        "monai_version": versions["monai"], "pytorch_version": versions["torch"], "numpy_version": versions["numpy"],
        "required_packages_version": _REQUIRED,
        "name": study.name, "task": f"{study.task.kind}: {', '.join(task.class_names)}",
        "description": f"{study.model.name}, trained by hospitals together with fedimaging {__version__}; see the model card.",
        "authors": facts["approved_by"], "copyright": f"Released by {facts['approved_by']}",
        "intended_use": facts["intended_use"] or "not stated", "eval_metrics": facts["figures"],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": output}},
    }


def inference(study: Study, data: dict[str, Any], calibration: dict[str, Any] | None) -> dict[str, Any]:
    """configs/inference.json: `python -m monai.bundle run --config_file configs/inference.json` in the bundle's folder."""
    task = make_task(study.task)
    return {
        "imports": ["$import scripts.release_inference as inference"],
        "bundle_root": ".", "dataset_dir": "images", "output_dir": "predictions",
        "task": {"kind": study.task.kind, "class_names": list(task.class_names)},
        "calibration": calibration,
        "network": {"_target_": "scripts.release_inference.load_script", "path": "$@bundle_root + '/models/model.ts'"},
        "preprocessing": {"_target_": "scripts.release_inference.Prepare", "data": data},
        "images": "$inference.find_images(@dataset_dir)",
        "run": ["$inference.run_bundle(@network, @preprocessing, @images, @task, @calibration, @output_dir)"],
    }


def _readme(study: Study) -> str:
    return f"""# {study.name}

A MONAI bundle written by `fedimaging release`. The model card of the release says what it is for, how good it is, and what
is not protected. In a copy of the bundle's folder (whatever is written beside its files makes `fedimaging verify` complain),
with `pip install monai fire pydantic nibabel pydicom scipy pillow`:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir PREDICTIONS
    python -m monai.bundle verify_net_in_out network --meta_file configs/metadata.json --config_file configs/inference.json
    python -m monai.bundle verify_metadata --meta_file configs/metadata.json --filepath docs/metadata_schema.json

`models/model.ts` (TorchScript) gives logits; `configs/inference.json` turns them into calibrated probabilities.
`models/model.pt` holds the same tensors by name. `docs/metadata_schema.json` was written for this package from MONAI's bundle
specification, so that the metadata can be verified without a network; delete it to have MONAI fetch its own schema.
A bundle runs code (`scripts/`, `configs/`): verify the release with `fedimaging verify` first.
"""


_LICENCE = """The code in scripts/ is part of fedimaging and under the Apache License, Version 2.0.
The model {name} was released by {who}; ask them for the terms of its use.
"""

_TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def"],
    "properties": {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]}, "format": {"type": "string"},
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": ["integer", "string"]}},
        "dtype": {"enum": ["float32", "float16", "float64", "int32", "int64", "uint8"]},
        "value_range": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_VERSION = {"type": "string", "pattern": r"^\d+(\.\w+)*"}
SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "metadata.json of a MONAI bundle, as fedimaging reads MONAI's bundle specification",
    "type": "object",
    "required": [
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
        "task", "description", "authors", "copyright", "network_data_format",
    ],
    "properties": {
        "version": _VERSION, "monai_version": _VERSION, "pytorch_version": _VERSION, "numpy_version": _VERSION,
        "changelog": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
        "required_packages_version": {"type": "object", "additionalProperties": _VERSION},
        **{name: {"type": "string", "minLength": 1} for name in ("schema", "task", "description", "authors", "copyright")},
        "network_data_format": {
            "type": "object", "required": ["inputs", "outputs"],
            "properties": {
                "inputs": {"type": "object", "required": ["image"], "additionalProperties": _TENSOR},
                "outputs": {"type": "object", "required": ["pred"], "additionalProperties": _TENSOR},
            },
        },
    },
}
"""By https://docs.monai.io/en/stable/mb_specification.html; MONAI's own schema file is fetched from a network."""
