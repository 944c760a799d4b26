"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from fedimaging.training.memory import keep_freed_memory
    assert keep_freed_memory() and keep_freed_memory()
def faults():
    np.ones(2_000_000)  # warm: 16 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (6_000_000, 5_000_000, 6_000_000) * 3:  # 48 MB: above glibc's own largest threshold
        np.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux")
def test_pages_are_asked_for_once_and_not_at_every_batch() -> None:
    found = {
        how: int(subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give back")
    }
    assert found["keep"] * 3 < found["give back"]
