"""The map beside a prediction: where the network found its answer, or where a segmentation is unsure.

It shows the patient's own image: it is written where the image lies, and nowhere else.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.files import sha256_of
from fedimaging.release.opened import Release
from fedimaging.runs.pictures import map_panel, save_png, with_scale
from fedimaging.training.explain import UNCERTAINTY, saliency, uncertainty

_SIZE = 320


def write_map(release: Release, image: np.ndarray, probability: np.ndarray, path: Path) -> dict[str, Any]:
    """Write the map of one prepared image (C, *spatial) to `path` (PNG: the scan, the scan under the map, and a scale);
    returns what the log says of it: `method`, `of` (the class it speaks for), what 1 means, and the file's sha256. Error:
    RunError."""
    if release.study.task.kind == "segmentation":
        values = uncertainty(release.network, image)
        facts = {"method": "uncertainty", "of": None, "meaning": UNCERTAINTY, "peak": round(float(values.max()), 6)}
        words = "uncertainty: entropy of the class probabilities"
        panel = map_panel(image, values, (probability.argmax(0) > 0,), _SIZE)
    else:
        best = int(probability.argmax())
        found = saliency(release.network, image, best, multilabel=release.study.task.kind == "multilabel")
        facts = {"method": found.method, "of": release.class_names[best], "meaning": found.meaning, "peak": found.peak}
        words = f"what speaks for {facts['of']} ({found.method.replace('_', '-')})"
        panel = map_panel(image, found.values, (), _SIZE)
    save_png(with_scale(panel, words), path)
    return facts | {"sha256": sha256_of(path)}
