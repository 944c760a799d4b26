"""The two sources of randomness that privacy rests on: one for hospitals, one for simulations.

`SecureNoise` is keyed by the operating system and cannot be seeded. `SimulatedNoise` is a pure function of
(seed, site, round, step, purpose), so hospitals and rounds never share noise and any carrier gives the same numbers.
Both generate on the CPU. Secure noise is made and added in float64 and only then rounded to the tensor's type; simulated
noise, which protects nobody, in float32, three times as fast.

Sources: Mironov 2012 (what the last bits of floating-point noise give away); Holohan and Braghin 2021 (the sum of
several Gaussians as a remedy); Salmon et al. 2011 (Philox, a counter-based generator).
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from fedimaging.errors import PrivacyError, bad_value
from fedimaging.privacy.units import poisson_inclusion

_CHUNK = 1 << 17  # numbers per independent stream: fits the cache, and the streams can be filled side by side
_DRAWS = 4  # Gaussians summed for one number of secure noise
_MANTISSA = 0x000F_FFFF_FFFF_FFFF
_EXPONENT_OF_ONE = 0x3FF0_0000_0000_0000


class NoiseSource(Protocol):
    """What a private step needs from a source of randomness."""

    @property
    def name(self) -> str:
        """"secure" or "simulated": reports say which was used."""

    def inclusion(self, step: int, n_units: int, sample_rate: float) -> np.ndarray:
        """(N,) bool: each unit drawn alone with probability `sample_rate`."""

    def generator(self, step: int, purpose: str) -> np.random.Generator:
        """For choices inside a unit (which scans, which augmentation); the guarantee does not rest on these."""

    def add_gaussian(self, tensors: Sequence[Tensor], std: float, step: int) -> None:
        """Add independent N(0, std²) to every element, in place."""


class SimulatedNoise:
    """Reproducible noise for simulations: every number follows from (seed, site, round, step, purpose)."""

    name = "simulated"

    def __init__(self, seed: int, site: str, round: int) -> None:
        self._origin = f"fedimaging noise 1\n{seed}\n{site}\n{round}"

    def inclusion(self, step: int, n_units: int, sample_rate: float) -> np.ndarray:
        """See `NoiseSource.inclusion`."""
        return poisson_inclusion(self.generator(step, "inclusion").random(n_units), sample_rate)

    def generator(self, step: int, purpose: str) -> np.random.Generator:
        """A Philox stream keyed by the SHA-256 of where, when and what for."""
        digest = hashlib.sha256(f"{self._origin}\n{step}\n{purpose}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")))

    def add_gaussian(self, tensors: Sequence[Tensor], std: float, step: int) -> None:
        """See `NoiseSource.add_gaussian`. The same numbers on every device and for any number of threads."""
        _check_std(std)

        def fill(index: int, out: Tensor) -> None:
            digest = hashlib.sha256(f"{self._origin}\n{step}\ngaussian {index}".encode()).digest()
            stream = np.random.SFC64(np.random.SeedSequence(int.from_bytes(digest, "little")))
            np.random.Generator(stream).standard_normal(out=out.numpy(), dtype=np.float32)

        _add(tensors, std, fill, torch.float32)


class SecureNoise:
    """Noise for hospitals: AES-256-CTR under fresh keys from the operating system. It takes no seed.

    A new key for every call makes it safe after a fork and leaves no state that could be replayed.
    """

    name = "secure"

    def inclusion(self, step: int, n_units: int, sample_rate: float) -> np.ndarray:
        """See `NoiseSource.inclusion`."""
        uniforms = torch.empty(n_units, dtype=torch.float64)
        _fill_secure_uniform(uniforms)
        return poisson_inclusion(uniforms.numpy(), sample_rate)

    def generator(self, step: int, purpose: str) -> np.random.Generator:
        """A numpy generator seeded with 256 bits of the system's entropy."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(os.urandom(32), "big"))))

    def add_gaussian(self, tensors: Sequence[Tensor], std: float, step: int) -> None:
        """See `NoiseSource.add_gaussian`. Each number is the sum of four Gaussians, each of a quarter of the variance."""
        _check_std(std)
        _add(tensors, std, lambda index, out: _fill_secure_normal(out), torch.float64)


def _check_std(std: float) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise PrivacyError(bad_value("std of the noise", std, "must be a finite number, 0 or above"))


def _add(
    tensors: Sequence[Tensor], std: float, fill: Callable[[int, Tensor], None], precision: torch.dtype
) -> None:
    """Add std times standard normals; `fill(index, out)` writes chunk `index` of all numbers laid end to end. Product
    and sum are formed in `precision`, or the tensors' own type if that is wider, and only then rounded."""
    if not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    chunks = flat.split(_CHUNK)

    def add(index: int) -> None:
        normal = torch.empty(len(chunks[index]), dtype=precision)
        fill(index, normal)
        chunk = chunks[index]
        chunk.copy_(normal.mul_(std).to(chunk.device).add(chunk))

    if len(chunks) == 1 or torch.get_num_threads() == 1:
        for index in range(len(chunks)):
            add(index)
    else:
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            list(pool.map(add, range(len(chunks))))
    for tensor, piece in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(piece.view(tensor.shape))


def _fill_secure_uniform(out: Tensor) -> None:
    """Uniforms on [0, 1) in steps of 2^-52, from AES-256-CTR key stream under a fresh key."""
    cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    bits = torch.zeros(out.numel(), dtype=torch.int64)
    stream = bits.numpy().data.cast("B")
    cipher.update_into(stream, stream)  # zeros in, key stream out, in place
    # The mantissa of a float64 in [1, 2) is 52 free bits.
    bits.bitwise_and_(_MANTISSA).bitwise_or_(_EXPONENT_OF_ONE)
    torch.sub(bits.view(torch.float64), 1.0, out=out)


def _fill_secure_normal(out: Tensor) -> None:
    """Standard normals: four Box-Muller draws added and halved, so that no single rounding shows."""
    half = (out.numel() + 1) // 2
    total = torch.zeros(2, half, dtype=torch.float64)
    uniform = torch.empty(2, half, dtype=torch.float64)
    for _ in range(_DRAWS):
        _fill_secure_uniform(uniform.view(-1))
        radius = uniform[0].neg_().add_(1.0).log_().mul_(-2.0).sqrt_()  # 1 - u lies in (0, 1]: the log is finite
        angle = uniform[1].mul_(2 * math.pi)
        total[0] += radius * angle.cos()
        total[1] += radius * angle.sin()
    out.copy_(total.view(-1)[: out.numel()].div_(math.sqrt(_DRAWS)))
