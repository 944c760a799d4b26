"""Drawings of a chest: a radiograph in two dimensions, a CT-like volume in three, each for many patients at once.

Shape legend: B scans, then the picture's own axes. Coordinates run from -1 to 1 along every axis. A radiograph is
(rows from the head down, columns from the patient's right to left); a volume is RAS: x to the right, y to the front,
z to the head. Grey: 0 is air, 1 is the densest bone. Only the general arrangement is anatomical; no measure is taken
from a person.
"""

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Bodies:
    """Who is drawn, one entry a scan. `shape` (B, 8): build of the patient, each in -1..1. Lesion `kind` 0 is none, 1
    a nodule, 2 a patchy opacity, `side` -1 or 1, `place` (B, 3) in -1..1 inside the lung, `radius` as a fraction of
    half the picture.
    """

    shape: np.ndarray
    female: np.ndarray
    kind: np.ndarray
    side: np.ndarray
    place: np.ndarray
    radius: np.ndarray
    contrast: np.ndarray

    def take(self, rows: slice) -> "Bodies":
        """Some of the scans."""
        return Bodies(*(getattr(self, field.name)[rows] for field in fields(self)))


def radiograph(
    bodies: Bodies, x_BHW: np.ndarray, y_BHW: np.ndarray, noise_BHW: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A frontal chest radiograph and its lesion mask, (B, H, W) float32 and bool. `noise` is smooth, of unit variance."""
    build = [bodies.shape[:, i, None, None] for i in range(8)]
    x, y = x_BHW, y_BHW
    half = 0.24 + (0.64 + 0.06 * build[0]) * _step(y + 0.80, 0.06) - 0.05 * y
    body = _step(half - np.abs(x), 0.02)
    picture = body * (0.34 + 0.14 * np.sqrt(np.clip(1 - (x / (half + 0.05)) ** 2, 0, 1)) + 0.10 * _step(y - 0.62, 0.10))
    lungs = _flat_lungs(x, y, build)
    heart = _step(1 - np.hypot((x - 0.13 - 0.25 * (y - 0.28)) / (0.27 + 0.04 * build[3]), (y - 0.28) / 0.29), 0.07)
    air = lungs * (1 - heart)
    picture -= 0.30 * air
    picture += body * (0.16 * _bell(x / 0.12) + 0.05 * _bell(x / 0.08) * np.sin(26 * y + 3 * build[4]) + 0.13 * heart)
    picture -= 0.08 * _bell(x / 0.04) * _step(-0.38 - y, 0.04) * body
    picture += _ribs_and_clavicles(x, y, build)
    hilum = _bell(np.hypot(np.abs(x) - 0.17, y + 0.02) / 0.34)
    picture += air * (0.17 * hilum * np.clip(1 - np.abs(noise_BHW) / 0.6, 0, 1) + 0.02 * noise_BHW)
    breast = _bell(np.hypot((np.abs(x) - 0.45) / 0.28, (y - 0.34) / 0.22))
    picture += bodies.female[:, None, None] * 0.07 * breast * body
    extra, mask = _flat_lesion(bodies, x, y, noise_BHW, lungs)
    return (picture + extra).astype(np.float32), mask


def volume(
    bodies: Bodies, x_BXYZ: np.ndarray, y_BXYZ: np.ndarray, z_BXYZ: np.ndarray, noise_BXYZ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A chest volume and its lesion mask, (B, X, Y, Z) float32 and bool. `noise` is smooth, of unit variance."""
    build = [bodies.shape[:, i, None, None, None] for i in range(8)]
    x, y, z = x_BXYZ, y_BXYZ, z_BXYZ
    rho = np.hypot(x / (0.90 + 0.05 * build[0]), y / (0.66 + 0.05 * build[1]))
    body = _step(1 - rho, 0.02)
    picture = body * (0.30 + 0.16 * _step(0.90 - rho, 0.02) + 0.015 * noise_BXYZ)
    dome = -0.50 + 0.22 * _bell((np.abs(x) - 0.42) / 0.30) + 0.06 * build[2]
    lung = 1 - np.sqrt(
        ((np.abs(x) - 0.43) / (0.31 + 0.02 * build[3])) ** 2 + ((y - 0.02) / 0.47) ** 2 + ((z - 0.0) / 0.95) ** 2
    )
    heart = _step(1 - np.sqrt(((x + 0.14) / 0.34) ** 2 + ((y - 0.14) / 0.30) ** 2 + ((z + 0.30) / 0.36) ** 2), 0.05)
    lungs = _step(np.minimum(lung, z - dome), 0.025)
    air = lungs * (1 - heart)
    picture -= air * (0.36 - 0.10 * np.clip(1 - np.abs(noise_BXYZ) / 0.5, 0, 1) * _bell((np.abs(x) - 0.3) / 0.2))
    liver = _step(dome - 0.03 - z, 0.03) * _step(0.84 - rho, 0.03) * _step(x + 0.1, 0.08)
    picture += 0.10 * heart + 0.08 * body * liver
    ring = _bell((rho - 0.86) / 0.05) * np.clip(1.6 * np.cos(22 * (z + 0.35 * y) + 3 * build[4]), 0, 1)
    spine = _step(0.13 - np.hypot(x, y + 0.46), 0.02) * (0.8 + 0.2 * np.cos(24 * z))
    sternum = _bell(np.hypot(x / 0.09, (y - 0.56) / 0.04))
    picture += body * (0.36 * ring * _step(z + 0.75, 0.05) + 0.42 * spine + 0.25 * sternum)
    picture -= 0.40 * _step(0.065 - np.hypot(x, y + 0.10), 0.02) * _step(z - 0.25, 0.04)
    extra, mask = _round_lesion(bodies, x, y, z, noise_BXYZ, lungs)
    return (picture + extra).astype(np.float32), mask


def _flat_lungs(x: np.ndarray, y: np.ndarray, build: list[np.ndarray]) -> np.ndarray:
    """Two tall rounded fields, narrower at the top, ending below at the domes of the diaphragm."""
    wide = (0.26 + 0.02 * build[1]) * (0.70 + 0.30 * _step(y + 0.30, 0.15))
    across = (np.abs(x) - 0.38 - 0.04 * y) / wide
    inside = 1 - _cube(np.abs(across)) - _cube(np.abs(y + 0.02) / 0.64)
    dome = 0.50 + 0.05 * build[2] + 0.05 * np.sign(x) - 0.13 * np.cos(1.4 * across)
    return _step(np.minimum(inside * 0.12, dome - y), 0.018)


def _ribs_and_clavicles(x: np.ndarray, y: np.ndarray, build: list[np.ndarray]) -> np.ndarray:
    chest = _step(1 - np.hypot(x / 0.74, (y + 0.04) / 0.70), 0.06) * _step(np.abs(x) - 0.07, 0.03)
    turn = (y - 0.55 * x**2 + 0.30 * np.abs(x)) * (29 + build[5]) + 2 * build[6]
    ribs = np.clip(np.cos(turn), 0.35, 1) - 0.35
    line = y + 0.52 + 0.26 * (np.abs(x) - 0.08) - 0.03 * build[7]
    clavicle = _bell(line / 0.03) * _step(np.abs(x) - 0.06, 0.02) * _step(0.62 - np.abs(x), 0.04)
    return 0.13 * chest * ribs + 0.11 * clavicle


def _flat_lesion(
    bodies: Bodies, x: np.ndarray, y: np.ndarray, noise: np.ndarray, lungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    place, side = bodies.place[:, :, None, None], bodies.side[:, None, None]
    # On the patient's left (positive x here) the heart fills the lower field: the lesion stays above it.
    middle_y = np.where(side > 0, -0.22, -0.05) + np.where(side > 0, 0.20, 0.34) * place[:, 1]
    away = np.hypot(x - side * (0.40 + 0.11 * place[:, 0]), (y - middle_y) * 0.9)
    return _lesion(bodies, away, noise, lungs)


def _round_lesion(
    bodies: Bodies, x: np.ndarray, y: np.ndarray, z: np.ndarray, noise: np.ndarray, lungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    place, side = bodies.place[:, :, None, None, None], bodies.side[:, None, None, None]
    across, depth = x - side * (0.46 + 0.09 * place[:, 0]), y - 0.22 * place[:, 2]
    height = z - 0.25 - 0.35 * place[:, 1]
    return _lesion(bodies, 0.8 * np.sqrt(across**2 + depth**2 + height**2), noise, lungs)


def _lesion(bodies: Bodies, away: np.ndarray, noise: np.ndarray, lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the lesion adds, and where it is. A nodule is round and even, an opacity wider, ragged and cloudy."""
    across_all = (slice(None),) + (None,) * (away.ndim - 1)
    kind, radius = bodies.kind[across_all], bodies.radius[across_all]
    patchy = kind == 2
    edge = np.where(patchy, 1.7 * radius, radius) * (1 + np.where(patchy, 0.20, 0.06) * noise)
    depth = np.where(kind > 0, edge - away, -1.0)
    cloud = np.where(patchy, 0.75 * (1 + 0.25 * noise), 1.0) * lungs
    return bodies.contrast[across_all] * cloud * _step(depth, 0.02), (depth > 0) & (lungs > 0.5)


def _step(distance: np.ndarray, width: float) -> np.ndarray:
    """0 outside to 1 inside, smooth over 1.5 `width` to both sides: a cubic, many times faster than tanh."""
    t = np.clip(distance * np.float32(1 / (3 * width)) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def _bell(distance: np.ndarray) -> np.ndarray:
    return np.exp(-distance * distance)


def _cube(length: np.ndarray) -> np.ndarray:
    return length * length * length  # ** 3 takes the slow general power
