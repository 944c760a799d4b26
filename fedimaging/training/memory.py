"""Keep freed memory for the next batch.

The C library gives large blocks back to the system as soon as they are freed, and asks for them again at the next layer:
on a CPU up to half of a training step is the kernel clearing pages. See mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
"""

import ctypes
import sys

_TRIM, _MMAP = -1, -3
_NEVER, _LARGEST = -1, 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed, in this process and those it forks. False where the C library is another."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # musl knows mallopt by name only
        return False
    return bool(library.mallopt(_MMAP, _LARGEST)) and bool(library.mallopt(_TRIM, _NEVER))
