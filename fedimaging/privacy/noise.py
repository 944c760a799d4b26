"""The two sources of randomness that privacy rests on: one for hospitals, one for simulations.

`SecureNoise` is keyed by the operating system and cannot be seeded. `SimulatedNoise` is a pure function of
(seed, site, round, step, purpose), so hospitals and rounds never share noise and any carrier gives the same numbers.
Both draw bits from ChaCha20 (`key_stream.py`), under keys that differ in where they come from, and turn them into Gaussians
where the tensors are. Secure noise is made and added in float64 and
only then rounded to the tensor's type; simulated noise, which protects nobody, in float32, several times as fast.

Sources: Mironov 2012 (what the last bits of floating-point noise give away); Holohan and Braghin 2021 (the sum of
several Gaussians as a remedy); Box and Muller 1958; Salmon et al. 2011 (counter-based generators).
"""

import hashlib
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedimaging.errors import PrivacyError, bad_value
from fedimaging.privacy import key_stream
from fedimaging.privacy.units import poisson_inclusion

_CHUNK = 1 << 17  # numbers per key: their bits fit the cache, and the chunks can be filled side by side
_FEW = 1 << 15  # numbers of a step; up to here calls cost a good part of the time, and several steps' are made at once
_AHEAD = 8  # so many steps at most
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

    def add_gaussian(self, tensors: Sequence[Tensor], std: float, step: int, *, over: float = 1.0) -> None:
        """Add independent N(0, std²) to every element, and divide the sum by `over`, in place."""


class SimulatedNoise:
    """Reproducible noise for simulations: every number follows from (seed, site, round, step, purpose)."""

    name = "simulated"

    def __init__(self, seed: int, site: str, round: int) -> None:
        self._origin = f"fedimaging noise 2\n{seed}\n{site}\n{round}"
        self._ahead = 0, torch.empty(0, 0)  # a step, and the normals of it and those after it (steps, numbers)

    def inclusion(self, step: int, n_units: int, sample_rate: float) -> np.ndarray:
        """See `NoiseSource.inclusion`."""
        return poisson_inclusion(self.generator(step, "inclusion").random(n_units), sample_rate)

    def generator(self, step: int, purpose: str) -> np.random.Generator:
        """A Philox stream keyed by the SHA-256 of where, when and what for."""
        return np.random.Generator(np.random.Philox(key=np.frombuffer(self._key(step, purpose)[:16], dtype="<u8")))

    def add_gaussian(self, tensors: Sequence[Tensor], std: float, step: int, *, over: float = 1.0) -> None:
        """See `NoiseSource.add_gaussian`. The same bits for any number of threads and on every device, whose logarithms and
        cosines may differ in the last digit."""
        _add(tensors, std, partial(self._gaussian_key, step), _SIMULATED, over, partial(self._few, step))

    def _few(self, step: int, count: int) -> Tensor:
        """(count,) normals of a step. One pass makes those of the next steps too, twice as many as the last one where steps of as
        many numbers follow each other. What is kept follows from the key like any other number here; secure noise is never made
        ahead."""
        first, normals = self._ahead
        end, alike = first + len(normals), normals.shape[1] == count
        if not (alike and first <= step < end):
            steps = min(_AHEAD, 2 * len(normals)) if alike and step == end else 1
            words = torch.empty(steps, 1, 2, count // 2, dtype=_SIMULATED.words)
            for place, row in enumerate(words):
                key_stream.fill(self._gaussian_key(step + place, 0), row)
            first, normals = self._ahead = step, _SIMULATED.normals(words)
        return normals[step - first]

    def _gaussian_key(self, step: int, chunk: int) -> bytes:
        return self._key(step, f"gaussian {chunk}")

    def _key(self, step: int, purpose: str) -> bytes:
        return hashlib.sha256(f"{self._origin}\n{step}\n{purpose}".encode()).digest()


class SecureNoise:
    """Noise for hospitals: ChaCha20 under fresh keys from the operating system. It takes no seed.

    A new key for every chunk of every call makes it safe after a fork and leaves no state that could be replayed.
    """

    name = "secure"

    def inclusion(self, step: int, n_units: int, sample_rate: float) -> np.ndarray:
        """See `NoiseSource.inclusion`."""
        words = torch.empty(n_units, dtype=torch.int64)
        key_stream.fill(os.urandom(32), words)
        return poisson_inclusion(_uniforms(words).numpy(), sample_rate)

    def generator(self, step: int, purpose: str) -> np.random.Generator:
        """A numpy generator seeded with 256 bits of the system's entropy."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(os.urandom(32), "big"))))

    def add_gaussian(self, tensors: Sequence[Tensor], std: float, step: int, *, over: float = 1.0) -> None:
        """See `NoiseSource.add_gaussian`. Each number is the sum of four Gaussians, each of a quarter of the variance."""
        _add(tensors, std, lambda chunk: os.urandom(32), _SECURE, over)


@dataclass(frozen=True)
class _Method:
    """How bits become Gaussians: normals(words (..., draws, 2, H) of `words`) -> (..., 2 H) of `precision`."""

    words: torch.dtype
    draws: int
    precision: torch.dtype
    normals: Callable[[Tensor], Tensor]


def _add(
    tensors: Sequence[Tensor], std: float, key_of: Callable[[int], bytes], method: _Method, over: float,
    few: Callable[[int], Tensor] | None = None,
) -> None:
    """Add std times standard normals to all numbers laid end to end, of which chunk i comes from the key `key_of(i)`, and divide
    by `over`. Made by the CPU, up to _FEW numbers come from `few(count)`, count being even. Product and sum are
    formed in the method's precision, or the tensors' own type if that is wider, then rounded."""
    if not (math.isfinite(std) and std >= 0):
        raise PrivacyError(bad_value("std of the noise", std, "must be a finite number, 0 or above"))
    sizes = [tensor.numel() for tensor in tensors]
    count = sum(sizes)
    if not count:
        return
    chunks = [min(_CHUNK, count - first + (count - first) % 2) for first in range(0, count, _CHUNK)]
    device = tensors[0].device
    normals = _on_cuda(chunks, device, key_of, method) if device.type == "cuda" else None
    with torch.no_grad():
        if normals is None:
            made = few(chunks[0]) if few and count <= _FEW else None
            _add_on_cpu(tensors, std, chunks, key_of, method, over, made)
        else:
            pieces = normals[:count].split(sizes)
            torch._foreach_add_(list(tensors), [p.view(t.shape) for p, t in zip(pieces, tensors, strict=True)], alpha=std)
            torch._foreach_div_(list(tensors), over)


def _add_on_cpu(
    tensors: Sequence[Tensor], std: float, chunks: list[int], key_of: Callable[[int], bytes], method: _Method, over: float,
    made: Tensor | None,
) -> None:
    """Chunk by chunk, added and divided while it lies in the cache; `made`: the normals of the only chunk, where they are there
    already. Apple's MPS, which has no float64, is served here too."""
    tensors = _runs(tensors)
    sizes = [tensor.numel() for tensor in tensors]
    flats = [_flat_on_cpu(tensor) for tensor in tensors]
    ends = list(accumulate(sizes))

    def make(chunk: int) -> None:
        normals, first = _normals(key_of(chunk), chunks[chunk], method) if made is None else made, chunk * _CHUNK
        last = min(first + len(normals), ends[-1])
        for place in range(bisect_right(ends, first), bisect_left(ends, last) + 1):
            begin = ends[place] - sizes[place]
            low, high = max(first, begin), min(last, ends[place])
            target = flats[place][low - begin : high - begin].add_(normals[low - first : high - first], alpha=std)
            if over != 1.0:
                target.div_(over)

    _side_by_side(make, len(chunks))
    for tensor, flat in zip(tensors, flats, strict=True):
        if tensor.data_ptr() != flat.data_ptr():
            tensor.copy_(flat.view(tensor.shape))


def _normals(key: bytes, count: int, method: _Method) -> Tensor:
    words = torch.empty(method.draws, 2, count // 2, dtype=method.words)
    key_stream.fill(key, words)
    return method.normals(words)


def _runs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same numbers in the same order; tensors that follow each other in one memory, as many small ones do, are one."""
    firsts: list[Tensor] = []
    counts: list[int] = []
    end = 0
    for tensor in tensors:
        place, count = tensor.data_ptr(), tensor.numel()
        if not count:
            continue
        plain = tensor.device.type == "cpu" and tensor.is_contiguous()
        if plain and place == end and _share_memory(tensor, firsts[-1]):
            counts[-1] += count
        else:
            firsts.append(tensor)
            counts.append(count)
        end = place + count * tensor.element_size() if plain else 0
    pairs = zip(firsts, counts, strict=True)
    return [first if first.numel() == count else first.as_strided((count,), (1,)) for first, count in pairs]


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _flat_on_cpu(tensor: Tensor) -> Tensor:
    """The tensor's own memory where it can be, else a copy."""
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        return tensor.view(-1)
    return tensor.detach().cpu().contiguous().view(-1)


def _on_cuda(
    sizes: list[int], device: torch.device, key_of: Callable[[int], bytes], method: _Method
) -> Tensor | None:
    """All chunks but the last at once, and the last one, which may be shorter. None: the device cannot make the bits."""
    found, first = [], 0
    for chunks, size in ((len(sizes) - 1, _CHUNK), (1, sizes[-1])):
        keys = [key_of(chunk) for chunk in range(first, first + chunks)]
        first += chunks
        if not keys:
            continue
        numbers = size * method.draws
        per_word = 8 // method.words.itemsize
        words = key_stream.on_cuda(keys, -(-numbers // per_word), device)
        if words is None:
            return None
        cut = words.contiguous().view(method.words)[:, :numbers]
        found.append(method.normals(cut.reshape(chunks, method.draws, 2, -1)).flatten())
    return torch.cat(found)


def _side_by_side(work: Callable[[int], None], count: int) -> None:
    if count == 1 or torch.get_num_threads() == 1:
        for index in range(count):
            work(index)
        return
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        list(pool.map(work, range(count)))


def _uniforms(bits: Tensor) -> Tensor:
    """int64 words -> float64 on [0, 1) in steps of 2^-52: the mantissa of a float64 in [1, 2) is 52 free bits. In place."""
    return bits.bitwise_and_(_MANTISSA).bitwise_or_(_EXPONENT_OF_ONE).view(torch.float64).sub_(1.0)


def _secure_normals(words: Tensor) -> Tensor:
    """Four Box-Muller draws added and halved, so that no single rounding shows."""
    uniform = _uniforms(words)
    radius = _log(uniform[..., 0, :].neg().add_(1.0)).mul_(-2.0).sqrt_()  # 1 - u lies in (0, 1]: the log is finite
    angle = uniform[..., 1, :].mul(2 * math.pi)
    pairs = torch.stack([wave.mul_(radius).sum(-2) for wave in (angle.cos(), angle.sin_())], dim=-2)
    return pairs.flatten(-2).div_(math.sqrt(_DRAWS))


def _simulated_normals(words: Tensor) -> Tensor:
    """One Box-Muller draw from 31 and 32 bits; the radius reaches 6.7, fine steps included."""
    if words.device.type == "cpu":
        return _simulated_on_cpu(words)
    bits = words[..., 0, 0, :].bitwise_and_(0x7FFF_FFFF)
    radius = torch.add(bits, 0.5).mul_(2.0**-31).log_().mul_(-2.0).sqrt_()
    angle = torch.mul(words[..., 0, 1, :], math.pi * 2.0**-31)
    return torch.stack([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=-2).flatten(-2)


def _simulated_on_cpu(words: Tensor) -> Tensor:
    """(..., 1, 2, H) -> (..., 2 H) by NumPy, which takes half of PyTorch's time for these functions. Uses the words up."""
    bits = words[..., 0, :, :].numpy()
    lows, highs = bits[..., 0, :], bits[..., 1, :]
    radius, out = np.empty(lows.shape, dtype=np.float32), np.empty(bits.shape, dtype=np.float32)
    np.bitwise_and(lows, np.int32(0x7FFF_FFFF), out=lows)
    np.add(lows, np.float32(0.5), out=radius, dtype=np.float32, casting="same_kind")
    radius *= np.float32(2.0**-31)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    torch.from_numpy(radius).sqrt_()
    cosine, sine = out[..., 0, :], out[..., 1, :]
    np.multiply(highs, np.float32(math.pi * 2.0**-31), out=sine, dtype=np.float32, casting="same_kind")
    np.cos(sine, out=cosine)
    np.sin(sine, out=sine)
    out *= radius[..., None, :]
    return torch.from_numpy(out).flatten(-2)


def _log(x: Tensor) -> Tensor:
    """In place. NumPy's logarithms take a CPU half the time of PyTorch's."""
    if x.device.type != "cpu":
        return x.log_()
    np.log(x.numpy(), out=x.numpy())
    return x


_SIMULATED = _Method(torch.int32, 1, torch.float32, _simulated_normals)
_SECURE = _Method(torch.int64, _DRAWS, torch.float64, _secure_normals)
