"""Phantoms: patients who never lived, with lesions whose place is known, seen by the scanners of different hospitals.

Everything follows from the spec alone. Hospitals differ in size, prevalence, lesion size and scanner (contrast,
gamma, noise, blur, resolution, collimation); women over 70 are the harder subgroup: their lesions are fainter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedimaging.data.anatomy import Bodies, radiograph, volume
from fedimaging.data.spec import PhantomSpec
from fedimaging.data.store import in_order

VERSION = 2
"""Part of the store's key: raise it when the same spec gives other pictures than before."""

FIELD_MM = 384.0
"""Width of the picture in mm, for spacing: about that of a chest radiograph."""

_BLOCK_VALUES = 65_536  # pixels drawn at once: arrays that stay in a processor's cache


@dataclass(frozen=True)
class People:
    """All scans of all patients before any is drawn: one entry a scan, the scans of a patient beside each other."""

    patient_ids: np.ndarray
    hospital: np.ndarray
    labels: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    bodies: Bodies


@dataclass(frozen=True)
class Phantom:
    """image (1, *spatial) uint8, mask (*spatial) uint8 with 1 for lesion."""

    image: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class Scanner:
    """How one hospital's machine shows a body. `blur` and `coarseness` are in 64ths of the picture's width."""

    gain: float
    gamma: float
    offset: float
    noise: float
    blur: float
    coarseness: float
    collimation: float


def draw_scans(spec: PhantomSpec) -> People:
    """Patients, their scans and lesions. Label columns: lesion (0, 1), nodule (0, 1), opacity (0, 1), kind (0, 1, 2)."""
    rng = np.random.default_rng([spec.seed, 1])
    hospital = np.repeat(np.arange(spec.hospitals), _hospital_sizes(spec))
    n = len(hospital)
    female, age = rng.random(n) < 0.5, np.clip(rng.normal(60, 15, n), 20, 95).astype(int)
    ill = rng.random(n) < _between(spec.prevalence, spec)[hospital]
    kind = np.where(ill, np.where(rng.random(n) < 0.6, 1, 2), 0)
    hard = female & (age > 70)
    shape, place = rng.uniform(-1, 1, (n, 8)), rng.uniform(-1, 1, (n, 3))
    radius = _between(spec.lesion_radius, spec)[hospital] * rng.uniform(0.8, 1.2, n)
    contrast = spec.lesion_contrast * rng.uniform(0.5, 1.2, n) * np.where(hard, spec.hard_contrast, 1.0)
    side = rng.choice([-1.0, 1.0], n)
    scans = rng.integers(spec.scans_per_patient[0], spec.scans_per_patient[1] + 1, n)
    of = np.repeat(np.arange(n), scans)
    growth = rng.uniform(0.9, 1.1, len(of))
    patient_ids = np.array([f"patient-{i:05d}" for i in range(n)])
    site = np.array([f"hospital_{i + 1:02d}" for i in range(spec.hospitals)])
    kinds = kind[of]
    return People(
        patient_ids=patient_ids[of],
        hospital=hospital[of],
        labels={"lesion": (kinds > 0) * 1, "nodule": (kinds == 1) * 1, "opacity": (kinds == 2) * 1, "kind": kinds * 1},
        columns={"site": site[hospital[of]], "sex": np.where(female, "F", "M")[of], "age": age.astype(str)[of]},
        bodies=Bodies(
            *(
                values.astype(np.float32)
                for values in (shape[of], female[of], kinds, side[of], place[of], radius[of] * growth, contrast[of])
            )
        ),
    )


def render(spec: PhantomSpec, people: People, image_size: Sequence[int]) -> Iterator[Phantom]:
    """Draw the scans in their order, at any size of 2 (rows, columns) or 3 (RAS) numbers.

    A scan depends on the spec, its own place in the list and the size, not on how many are drawn at once.
    """
    size = tuple(image_size)
    machines = scanners(spec)
    block = max(1, _BLOCK_VALUES // int(np.prod(size)))
    spacing = tuple(FIELD_MM / n for n in size)

    def draw(start: int) -> list[Phantom]:
        rows = slice(start, min(start + block, len(people.patient_ids)))
        rngs = [np.random.default_rng([spec.seed, 2, i]) for i in range(rows.start, rows.stop)]
        pictures, masks = _draw_block(people.bodies.take(rows), rngs, size)
        return [
            Phantom(_acquire(picture, machines[hospital], rng)[None], mask.astype(np.uint8), spacing)
            for picture, mask, rng, hospital in zip(pictures, masks, rngs, people.hospital[rows], strict=True)
        ]

    for drawn in in_order(draw, range(0, len(people.patient_ids), block), block=8):
        yield from drawn


def scanners(spec: PhantomSpec) -> list[Scanner]:
    """One machine a hospital; with scanner_difference 0 all are alike."""
    rng = np.random.default_rng([spec.seed, 3])
    made = []
    for _ in range(spec.hospitals):
        u = rng.uniform(-1, 1, 7) * spec.scanner_difference
        made.append(
            Scanner(
                gain=1.10 + 0.18 * u[0],
                gamma=float(np.exp(0.25 * u[1])),
                offset=0.03 + 0.03 * u[2],
                noise=0.030 + 0.020 * u[3],
                blur=0.35 + 0.30 * u[4],
                coarseness=1.0 + 0.9 * max(0.0, u[5]),
                collimation=0.10 * max(0.0, u[6]),
            )
        )
    return made


def _hospital_sizes(spec: PhantomSpec) -> np.ndarray:
    """Patients of each hospital: the first is about three times the last, and none is empty."""
    share = np.linspace(1.5, 0.5, spec.hospitals)
    sizes = 1 + np.floor((spec.patients - spec.hospitals) * share / share.sum()).astype(int)
    sizes[0] += spec.patients - sizes.sum()
    return sizes


def _between(ends: tuple[float, float], spec: PhantomSpec) -> np.ndarray:
    return np.linspace(ends[0], ends[1], spec.hospitals)


def _draw_block(
    bodies: Bodies, rngs: Sequence[np.random.Generator], size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Each patient stands a little differently at every scan; the smooth noise is the scan's own tissue texture."""
    from scipy import ndimage

    stance = np.array([rng.uniform(-1, 1, 4) for rng in rngs], dtype=np.float32)
    # Drawn on a grid of fixed fineness relative to the body, so that a texture is not finer at a greater size.
    rough = np.stack([rng.standard_normal(size, dtype=np.float32) for rng in rngs])
    smooth = ndimage.gaussian_filter(rough, (0, *(0.022 * n for n in size)), mode="wrap", truncate=3)
    smooth /= smooth.std(axis=tuple(range(1, smooth.ndim)), keepdims=True)
    axes = [np.linspace(-1, 1, 2 * n + 1, dtype=np.float32)[1::2] for n in size]
    grid = np.meshgrid(*axes, indexing="ij")
    shift = stance.reshape(len(rngs), 4, *(1,) * len(size))
    turn = 0.04 * shift[:, 3]
    if len(size) == 2:
        y, x = grid[0] + 0.03 * shift[:, 1], grid[1] + 0.04 * shift[:, 0]
        return radiograph(bodies, x + turn * y, y - turn * x, smooth)
    x, y, z = (axis + 0.03 * shift[:, i] for i, axis in enumerate(grid))
    return volume(bodies, x + turn * y, y - turn * x, z, smooth)


def _acquire(picture: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """The body as the machine shows it, as 8-bit values."""
    from scipy import ndimage

    pixel = min(picture.shape) / 64
    seen = np.clip(picture, 0, 1) ** np.float32(scanner.gamma) * np.float32(scanner.gain) + np.float32(scanner.offset)
    if scanner.coarseness > 1.01:
        coarse = ndimage.zoom(seen, 1 / scanner.coarseness, order=1, grid_mode=True, mode="nearest")
        seen = ndimage.zoom(coarse, np.divide(seen.shape, coarse.shape), order=1, grid_mode=True, mode="nearest")
    seen = ndimage.gaussian_filter(seen, scanner.blur * pixel, truncate=3)
    seen = seen + np.float32(scanner.noise) * rng.standard_normal(seen.shape, dtype=np.float32)
    border = int(scanner.collimation * min(seen.shape))
    if border and seen.ndim == 2:
        seen[:border], seen[-border:], seen[:, :border], seen[:, -border:] = 0, 0, 0, 0
    return np.clip(np.round(255 * seen), 0, 255).astype(np.uint8)
