"""A release, verified and opened: its network, and what it says of prepared images."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedimaging.errors import ReleaseError
from fedimaging.files import sha256_of
from fedimaging.release.export import rebuilt
from fedimaging.release.features import input_features
from fedimaging.release.inference import Prepare, probabilities
from fedimaging.release.reference import outputs_and_features
from fedimaging.release.strangeness import quantiles, together
from fedimaging.release.verify import MANIFEST, MODEL, verify
from fedimaging.study.load import load
from fedimaging.study.schema import Study
from fedimaging.training.tasks import make_task


@dataclass(frozen=True)
class Predicted:
    """What a release says of N prepared images.

    uncalibrated, probability: (N, K, *spatial of a segmentation) of each class or label, before and after calibration.
    inputs: (N, 7) `features.INPUT_FEATURES`. strangeness: (N,) `strangeness.together` of two quantiles, of input features and
    of the network's own; NaN where the reference had too few patients to tell.
    """

    uncalibrated: np.ndarray
    probability: np.ndarray
    inputs: np.ndarray
    strangeness: np.ndarray


@dataclass(frozen=True)
class Release:
    """One release whose every byte is as signed. `calibration`, `operating_point`: None where it has none."""

    folder: Path
    sha256: str
    manifest: Mapping[str, Any]
    study: Study
    network: nn.Module
    prepare: Prepare
    reference: Mapping[str, Any]
    calibration: Mapping[str, Any] | None
    operating_point: Mapping[str, Any] | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the columns of probabilities."""
        return make_task(self.study.task).class_names

    @property
    def flag_above(self) -> float:
        """An image that is stranger than this is flagged."""
        return float(self.reference["strangeness"]["flag_above"])

    def predict(self, images: np.ndarray) -> Predicted:
        """images (N, C, *image_size), as `prepare` makes them."""
        kind = self.study.task.kind
        outputs, features = outputs_and_features(self.network, images, np.arange(len(images)))
        inputs = input_features(images, self.study.data.intensity)
        known = self.reference["strangeness"]
        parts = [quantiles(known[key], values) for key, values in (("input", inputs), ("features", features)) if known[key]]
        strange = together(parts) if parts else np.full(len(images), np.nan)
        return Predicted(
            probabilities(outputs, kind, None), probabilities(outputs, kind, self.calibration), inputs, strange
        )


def open_release(folder: Path, public_key: str | None = None) -> Release:
    """Verify a release (as `folder.verify`) and open it on the CPU. Error: ReleaseError."""
    folder = folder.resolve()
    manifest = verify(folder, public_key)
    study = load(folder / "study.yaml")
    config = _json(folder / "bundle" / "configs" / "inference.json")
    return Release(
        folder, sha256_of(folder / MANIFEST), manifest, study, rebuilt(study, folder / MODEL),
        Prepare(config["preprocessing"]["data"]), _json(folder / "reference.json"),
        _json(folder / "calibration.json") if (folder / "calibration.json").exists() else None,
        _json(folder / "operating_point.json") if (folder / "operating_point.json").exists() else None,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return tree
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path.name} of the release cannot be read: {error}.") from None
