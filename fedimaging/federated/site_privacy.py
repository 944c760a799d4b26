"""The server's own books of hospital-level privacy: every noised mean is counted on the disk before its noise is drawn."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedimaging.aggregation.site_privacy import PrivateMean, SitePrivacySpec
from fedimaging.errors import RunError
from fedimaging.files import disk_fault
from fedimaging.privacy.gaussian import gaussian_epsilon
from fedimaging.privacy.noise import NoiseSource


class PrivateMeans:
    """For `Federation.mean_for`: the mean of one round, over `asked` hospitals.

    Guarantee: a mean that anybody saw is on the disk (fsync) before; a round that is run again after a crash counts
    again. `noise_for(round)`: secure, or in a simulation keyed by the round.
    """

    def __init__(self, spec: SitePrivacySpec, folder: Path, noise_for: Callable[[int], NoiseSource]) -> None:
        self._spec, self._path, self._noise_for = spec, folder / "site_privacy.jsonl", noise_for

    def __call__(self, round: int, asked: int) -> PrivateMean:
        """A mean for this round."""

        def add_noise(vector: np.ndarray, std: float) -> None:
            self._count(round)
            self._noise_for(round).add_gaussian([torch.from_numpy(vector)], std, step=0)

        return PrivateMean(self._spec, asked, add_noise)

    @property
    def releases(self) -> int:
        """How many means were noised so far in this run folder; a line that a crash cut short counts."""
        return len(self._path.read_text(encoding="utf-8").splitlines()) if self._path.exists() else 0

    @property
    def epsilon(self) -> float:
        """Epsilon for one hospital of all releases, at the spec's delta; exact for Gaussians without sampling."""
        return gaussian_epsilon(math.sqrt(self.releases) / self._spec.noise_multiplier, self._spec.delta)

    @property
    def noise(self) -> str:
        """"secure" or "simulated"."""
        return self._noise_for(0).name

    def _count(self, round: int) -> None:
        line = json.dumps({"round": round, "noise_multiplier": self._spec.noise_multiplier})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(disk_fault(self._path, error)) from error
