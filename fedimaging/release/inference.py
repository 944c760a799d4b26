"""From a file to calibrated probabilities and back to a file. This very text also runs in the MONAI bundle of a release.

Of fedimaging it needs only how scans are read and prepared, and that is copied beside it.
"""

import csv
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.data.readers import read_scan
from fedimaging.data.scan import Scan
from fedimaging.data.spec import DataSpec
from fedimaging.data.transforms import prepare_image, restore_mask
from fedimaging.errors import DataError


class Prepare:
    """Path -> the scan as the network wants it, (C, *spatial) float32: exactly what the hospitals trained on.

    data: the `data:` block of the study, without the hospital's own paths. Error: DataError naming the file.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.spec = DataSpec.model_validate(dict(data))

    def __call__(self, path: str | Path) -> np.ndarray:
        """The image alone."""
        return self.both(Path(path))[0]

    def both(self, path: Path) -> tuple[np.ndarray, Scan]:
        """The image, and the scan as it was read."""
        scan = read_scan(path)
        try:
            return np.ascontiguousarray(prepare_image(scan, self.spec)[0], np.float32), scan
        except DataError as error:
            raise DataError(f"{path} {error}") from error


def probabilities(outputs: np.ndarray, kind: str, calibration: Mapping[str, Any] | None) -> np.ndarray:
    """Outputs (B, K, *) -> probabilities of the same shape, float64; a probability for each label (multilabel), or adding
    up to 1 along K. `calibration`: `temperature`, by which outputs are divided (one number above 0, or K), and
    perhaps `bias`, which is added then."""
    logits = np.asarray(outputs, np.float64)
    shape = (1, -1) + (1,) * (logits.ndim - 2)
    if calibration is not None:
        logits = logits / np.reshape(np.asarray(calibration["temperature"], np.float64), shape)
        if calibration.get("bias") is not None:
            logits = logits + np.reshape(np.asarray(calibration["bias"], np.float64), shape)
    if kind == "multilabel":
        return np.asarray(1 / (1 + np.exp(-logits)))
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def write_mask(mask: np.ndarray, scan: Scan, data: Mapping[str, Any], folder: Path, stem: str) -> Path:
    """A label map (*image_size) on the scan's own grid: STEM.png for a picture, else STEM.nii.gz in the axes of the file it
    came from, at the same place in the patient. Returns the path."""
    own = restore_mask(mask.astype(np.uint8), scan, DataSpec.model_validate(dict(data)))
    folder.mkdir(parents=True, exist_ok=True)
    if own.ndim == 2:
        from PIL import Image

        path = folder / f"{stem}.png"
        Image.fromarray(own).save(path)
        return path
    import nibabel

    affine = np.diag([*(scan.spacing_mm or (1.0, 1.0, 1.0)), 1.0]) if scan.affine is None else scan.affine
    image = nibabel.Nifti1Image(own, affine)
    if scan.orientation is not None:
        ends = nibabel.orientations.axcodes2ornt(scan.orientation)
        image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(affine), ends))
    path = folder / f"{stem}.nii.gz"
    nibabel.save(image, path)
    return path


def load_script(path: str | Path) -> Any:
    """The TorchScript network in a file, ready to predict on the CPU."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces another format; this one is what MONAI and C++ load
        return torch.jit.load(str(path), map_location="cpu").eval()


def find_images(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files as they are; of a folder, everything in it (a folder of DICOM files is one series), in name order."""
    paths = [given] if isinstance(given, str | Path) else given
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.iterdir()) if path.is_dir() else []
        series = bool(inside) and all(file.suffix.lower() in (".dcm", ".dicom") for file in inside)
        found += [path] if not inside or series else [file for file in inside if not file.name.startswith(".")]
    return found


def run_bundle(
    network: Any, preparing: Prepare, images: Iterable[Path], task: Mapping[str, Any], calibration: Mapping[str, Any] | None,
    output_dir: str | Path,
) -> Path:
    """Predict every image and write OUTPUT_DIR/predictions.csv: `image`, then a probability for each class or label (for
    segmentation: voxels of each class, and masks/ beside it). Returns that path. Errors of the readers."""
    import torch

    out, rows, names = Path(output_dir), [], list(task["class_names"])
    for number, path in enumerate(images):
        image, scan = preparing.both(path)
        with torch.no_grad():
            outputs = network(torch.from_numpy(image[None])).numpy()
        values = probabilities(outputs, task["kind"], calibration)[0]
        if task["kind"] == "segmentation":
            mask = values.argmax(0)
            write_mask(mask, scan, preparing.spec.model_dump(mode="json"), out / "masks", f"{number:04d}")
            values = np.bincount(mask.ravel(), minlength=len(names))
        rows.append([str(path), *(json.dumps(value) for value in values.tolist())])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", *names], *rows])
    return out / "predictions.csv"
