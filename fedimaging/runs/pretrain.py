"""`fedimaging pretrain`: fit the fixed stage of a study's network to images of nobody who is to be protected.

The images are those of another study: generated phantoms, or a public data set. No label is used and nothing is trained,
so that what a hospital trains later is all there is to its privacy. Whoever runs this vouches that the images are public.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch

from fedimaging.errors import StudyError, bad_value
from fedimaging.files import write_whole
from fedimaging.models.zoo import build_model
from fedimaging.site.plan import prepare_data
from fedimaging.study.schema import Study

_MOST_IMAGES = 20_000  # a covariance of a few hundred numbers gains nothing from more


def pretrain(study: Study, on: Study, out: Path | None = None) -> tuple[Path, str]:
    """Fit the components of the study's `wavelet_net` to the images of `on`, brought to the study's shape; write them as
    safetensors to `out` (default: where the study looks for its weights) and return the path and its sha256 (hex).

    Errors: StudyError for another network or too few images, DataError for images that cannot be read.
    """
    if study.model.name != "wavelet_net":
        raise StudyError(bad_value(
            "model.name", study.model.name, "has no stage that images alone can fit",
            "use wavelet_net; or train this network on public images with `fedimaging simulate` and give its "
            "weights.safetensors as model.weights",
        ))
    if not study.model.options.get("components"):
        raise StudyError("model.options.components is not given, so nothing is to be fitted; say how many, e.g. 128.")
    path = out or Path(study.model.weights or "")
    if path.suffix != ".safetensors":
        raise StudyError(bad_value("--out" if out else "model.weights", str(path), "must end in .safetensors"))
    shape = {"image_size": study.data.image_size, "channels": study.data.channels, "intensity": study.data.intensity}
    dataset = prepare_data(on.model_copy(update={"data": on.data.model_copy(update=shape)}))
    every = -(-len(dataset) // _MOST_IMAGES)
    images = torch.from_numpy(np.array(dataset.images[::every]))
    spec = study.model.model_copy(update={"weights": None, "weights_sha256": None})  # the file that is made here
    network = build_model(
        spec, in_channels=study.data.channels, out_channels=2, image_size=study.data.image_size, seed=study.seed
    )
    network.fit_components(images)  # type: ignore[operator]
    return path, _write(network, path)


def _write(network: torch.nn.Module, out: Path) -> str:
    from safetensors.torch import save_file

    arrays = {name: network.get_buffer(name).contiguous() for name in network.FITTED}  # type: ignore[union-attr]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda path: save_file(arrays, path))
    return hashlib.sha256(out.read_bytes()).hexdigest()
