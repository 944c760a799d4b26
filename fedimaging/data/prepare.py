"""From the `data:` block of a study to a Dataset: the source is read, checked, decoded once and mapped."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fedimaging.data import manifest, medmnist, synthetic
from fedimaging.data.dataset import Dataset
from fedimaging.data.hashing import digests
from fedimaging.data.scan import Scan
from fedimaging.data.spec import DataSpec, PhantomSpec
from fedimaging.data.splits import split_by_patient
from fedimaging.data.store import (
    Pixels,
    cache_root,
    in_order,
    key_of,
    pixel_facts,
    write_pixels,
    write_table,
)
from fedimaging.data.transforms import RECIPE, prepare_image
from fedimaging.errors import DataError, unknown_name


@dataclass(frozen=True)
class Source:
    """What is known before any pixel is decoded, and how to decode.

    `content` names the pixels (a hash of files, or a recipe). `names` says which scan is meant in an error.
    """

    content: str
    pixels: Callable[[], Iterable[Pixels]]
    names: Callable[[int], str]
    patient_ids: np.ndarray
    split: np.ndarray | None
    labels: np.ndarray | None
    columns: dict[str, np.ndarray]
    has_masks: bool


def prepare(
    spec: DataSpec,
    *,
    labels: Sequence[str],
    needs_mask: bool,
    classes: int,
    multilabel: bool,
    cache_dir: Path | None = None,
    keep: manifest.Keep | None = None,
) -> Dataset:
    """Read and check the source of `spec`, decode what the store does not have yet, and map the result.

    labels: names of the label columns, none for segmentation; with one name and not `multilabel` the labels are (N,)
    class indices below `classes`, otherwise (N, L) zeros and ones. Masks are read only with `needs_mask`; their
    values are below `classes`. cache_dir: where stores are kept (default: FEDIMAGING_CACHE, or
    ~/.cache/fedimaging/store). keep: which rows of a manifest to keep; no file of the others is opened. The same files
    and spec give the same Dataset whoever prepares it, and two processes may prepare it at once. Raises DataError,
    naming the line of the manifest or the file, for anything that cannot be used as it is.
    """
    cache = cache_root(cache_dir)
    if keep is not None and spec.source != "manifest":
        raise DataError(f"data.source={spec.source!r} has no rows to choose from; only a manifest has.")
    read = SOURCES[spec.source] if keep is None else partial(_from_manifest, keep=keep)
    source = read(spec, labels, needs_mask, classes, multilabel, cache)
    recipe = [RECIPE, spec.image_size, spec.channels, spec.spacing_mm, spec.intensity, needs_mask]
    pixels = write_pixels(cache, key_of(source.content, *recipe), source.pixels, len(source.patient_ids))
    facts = pixel_facts(cache, pixels)
    if needs_mask:
        _check_mask_range(facts["mask_max"], classes, source)
    split = source.split if source.split is not None else split_by_patient(source.patient_ids, spec.split)
    arrays = {"patient_ids": source.patient_ids, "split": split}
    arrays |= {f"column:{name}": values for name, values in source.columns.items()}
    if source.labels is not None:
        arrays["labels"] = source.labels
    key = key_of(pixels, *(_digest(name, values) for name, values in sorted(arrays.items())))
    table = {
        "pixels": pixels,
        "masks": source.has_masks,
        "columns": list(source.columns),
        "spacing_mm": _common_spacing(facts["spacing_mm"]),
        "fingerprint": key,
    }
    return Dataset.open(write_table(cache, key, arrays, table))


def _from_phantoms(
    spec: DataSpec, labels: Sequence[str], needs_mask: bool, classes: int, multilabel: bool, cache: Path
) -> Source:
    phantoms = spec.phantoms or PhantomSpec(dims=3 if len(spec.image_size) == 3 else 2)
    people = synthetic.draw_scans(phantoms)
    for name in labels:
        if name not in people.labels:
            raise DataError(unknown_name("label", name, people.labels))

    def pixels() -> Iterable[Pixels]:
        for scan in synthetic.render(phantoms, people, spec.image_size):
            image, _ = prepare_image(Scan(scan.image, 255.0), spec)
            yield Pixels(image, scan.mask if needs_mask else None, scan.spacing_mm)

    columns = np.stack([people.labels[name] for name in labels], axis=1) if labels else None
    return Source(
        content=key_of("phantoms", synthetic.VERSION, phantoms.model_dump(mode="json")),
        pixels=pixels,
        names="scan {}".format,
        patient_ids=people.patient_ids,
        split=None,
        labels=_shape_labels(columns, labels, classes, multilabel, "scan {}".format),
        columns=people.columns,
        has_masks=needs_mask,
    )


def _from_medmnist(
    spec: DataSpec, labels: Sequence[str], needs_mask: bool, classes: int, multilabel: bool, cache: Path
) -> Source:
    file = medmnist.find_file(Path(spec.root), spec.path or "", spec.image_size)
    if needs_mask:
        raise DataError(f"{file} is in the MedMNIST layout, which has no masks; a segmentation study needs a manifest.")
    data = medmnist.read_labels(file)
    if labels and len(labels) != data.labels.shape[1]:
        raise DataError(
            f"{file} has {data.labels.shape[1]} labels a scan, the study names {len(labels)}: {', '.join(labels)}."
        )

    def ready(image: np.ndarray) -> Pixels:
        try:
            return Pixels(prepare_image(Scan(image, 255.0 if image.dtype == np.uint8 else None), spec)[0])
        except DataError as error:
            raise DataError(f"{file}: every scan {error}") from error

    def name(i: int) -> str:
        return f"{file} scan {data.patient_ids[i]}"

    return Source(
        content=key_of("medmnist", digests([file], cache)),
        pixels=lambda: in_order(ready, medmnist.read_images(file)),
        names=name,
        patient_ids=data.patient_ids,
        split=data.split,
        labels=_shape_labels(data.labels if labels else None, labels, classes, multilabel, name),
        columns={},
        has_masks=False,
    )


def _from_manifest(
    spec: DataSpec, labels: Sequence[str], needs_mask: bool, classes: int, multilabel: bool, cache: Path,
    keep: manifest.Keep | None = None,
) -> Source:
    path = Path(spec.root) / (spec.path or "")
    table = manifest.read_table(path, spec.columns, labels, needs_mask=needs_mask, keep=keep)
    if not len(table):
        raise DataError(f"{path}: no row is left of those that may be used.")
    manifest.raise_first(table, manifest.problems_of(table, labels, classes, multilabel, needs_mask=needs_mask))
    return Source(
        content=manifest.content_key(table, needs_mask, cache),
        pixels=partial(in_order, partial(manifest.decode, table, spec, needs_mask), range(len(table))),
        names=table.where,
        patient_ids=np.array(table.values["patient_id"]),
        split=manifest.split_of(table),
        labels=_shape_labels(manifest.labels_of(table, labels), labels, classes, multilabel, table.where),
        columns=manifest.kept_columns(table),
        has_masks=needs_mask,
    )


SOURCES = {"phantoms": _from_phantoms, "medmnist": _from_medmnist, "manifest": _from_manifest}


def _shape_labels(
    columns: np.ndarray | None, labels: Sequence[str], classes: int, multilabel: bool, name: Callable[[int], str]
) -> np.ndarray | None:
    """(N, L) whole numbers to what Dataset promises. Raises DataError for the first one out of range."""
    if columns is None:
        return None
    limit = 2 if multilabel or len(labels) > 1 else classes
    wrong = np.argwhere((columns < 0) | (columns >= limit))
    if len(wrong):
        row, which = wrong[0]
        raise DataError(
            f"{name(int(row))}: {labels[which]}={columns[row, which]} is out of range; allowed are 0 to {limit - 1}."
        )
    return columns.astype(np.float32) if multilabel or len(labels) > 1 else columns[:, 0].astype(np.int64)


def _check_mask_range(mask_max: np.ndarray, classes: int, source: Source) -> None:
    wrong = np.flatnonzero(mask_max >= classes)
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"{source.names(i)}: the mask has value {mask_max[i]}; allowed with {classes} classes are 0 to {classes - 1}"
            f" ({len(wrong)} scans in all)."
        )


def _common_spacing(spacing: np.ndarray) -> list[float] | None:
    """The spacing of all scans, if they have one in common to a thousandth of a millimetre."""
    first = spacing[0]
    same = bool(np.isfinite(spacing).all()) and bool((np.abs(spacing - first) < 1e-3).all())
    return [float(value) for value in first] if same else None


def _digest(name: str, values: np.ndarray) -> str:
    """sha256 of an array's name, type, shape and bytes."""
    head = f"{name}:{values.dtype.str}:{values.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()
