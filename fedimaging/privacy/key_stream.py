"""The bits behind all noise: the key stream of ChaCha20, made by the CPU or, the same bits, by the GPU that needs them.

Source: RFC 8439 (ChaCha20, with a nonce of zeros: a key serves one stream of at most 2^32 blocks of 64 bytes).
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

_BLOCK = 8  # int64 words that one counter gives

# One thread makes one block. PyTorch's parser of such code stumbles over the sign for "greater", hence the pointer casts.
_CODE = """
template <typename T> void chacha20(T counter, T key0, T key1, T key2, T key3,
                                    T& out0, T& out1, T& out2, T& out3, T& out4, T& out5, T& out6, T& out7) {
  #define QUARTER(a, b, c, d) \\
    a += b; d = __funnelshift_l(d ^ a, d ^ a, 16); c += d; b = __funnelshift_l(b ^ c, b ^ c, 12); \\
    a += b; d = __funnelshift_l(d ^ a, d ^ a, 8); c += d; b = __funnelshift_l(b ^ c, b ^ c, 7);
  #define LOW(v) ((unsigned int*)&v)[0]
  #define HIGH(v) ((unsigned int*)&v)[1]
  unsigned int start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u,
                            LOW(key0), HIGH(key0), LOW(key1), HIGH(key1), LOW(key2), HIGH(key2), LOW(key3), HIGH(key3),
                            LOW(counter), 0u, 0u, 0u};
  unsigned int x[16];
  for (int i = 0; i < 16; ++i) { x[i] = start[i]; }
  for (int i = 0; i < 10; ++i) {
    QUARTER(x[0], x[4], x[8], x[12]) QUARTER(x[1], x[5], x[9], x[13])
    QUARTER(x[2], x[6], x[10], x[14]) QUARTER(x[3], x[7], x[11], x[15])
    QUARTER(x[0], x[5], x[10], x[15]) QUARTER(x[1], x[6], x[11], x[12])
    QUARTER(x[2], x[7], x[8], x[13]) QUARTER(x[3], x[4], x[9], x[14])
  }
  for (int i = 0; i < 16; ++i) { x[i] += start[i]; }
  LOW(out0) = x[0]; HIGH(out0) = x[1]; LOW(out1) = x[2]; HIGH(out1) = x[3];
  LOW(out2) = x[4]; HIGH(out2) = x[5]; LOW(out3) = x[6]; HIGH(out3) = x[7];
  LOW(out4) = x[8]; HIGH(out4) = x[9]; LOW(out5) = x[10]; HIGH(out5) = x[11];
  LOW(out6) = x[12]; HIGH(out6) = x[13]; LOW(out7) = x[14]; HIGH(out7) = x[15];
}
"""


def fill(key: bytes, out: Tensor) -> None:
    """Fill a contiguous tensor on the CPU with the stream of a key of 32 bytes, which must serve once."""
    out.zero_()
    stream = out.numpy().data.cast("B")
    Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update_into(stream, stream)  # zeros in, key stream out


def on_cuda(keys: Sequence[bytes], words: int, device: torch.device) -> Tensor | None:
    """(keys, words) int64: the first so many words of each key's stream, made on the device. None where it cannot."""
    make = _kernel()
    if make is None:
        return None
    parts = torch.from_numpy(np.frombuffer(b"".join(keys), dtype="<i8").reshape(len(keys), 4).copy()).to(device)
    counters = torch.arange(-(-words // _BLOCK), device=device)[None]
    made = make(counters, *parts.split(1, dim=1))
    return torch.stack(list(made), dim=-1).flatten(1)[:, :words]


@cache
def _kernel() -> Callable[..., Sequence[Tensor]] | None:
    """The compiled kernel, once it gave the CPU's bits; None where this PyTorch or this GPU has no such compiler."""
    try:
        make: Callable[..., Sequence[Tensor]] = torch.cuda.jiterator._create_multi_output_jit_fn(_CODE, num_outputs=8)
        zeros = torch.zeros(1, 1, dtype=torch.int64, device="cuda")
        made = torch.stack(list(make(zeros + 3, zeros, zeros, zeros, zeros)), dim=-1).flatten().cpu()
    except (RuntimeError, AttributeError, TypeError, AssertionError):
        return None
    expected = torch.empty(4 * _BLOCK, dtype=torch.int64)
    fill(bytes(32), expected)
    return make if torch.equal(made, expected[3 * _BLOCK :]) else None
