"""Room on a hospital's disk for one round: without it nothing is charged."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedimaging.errors import LedgerError, RunError, SiteRefusal

_LEAST = 2**20  # bytes: what ledger and log may need for a round …
_VECTORS = 8  # … and so many times the model: release, checkpoint with moments, each beside the one it replaces


@contextlib.contextmanager
def room(folders: Sequence[Path], model_bytes: int) -> Iterator[None]:
    """Refuse before anything is charged where the disk is full, and with the same code where it fills up meanwhile: who
    asked will ask again, and a server that asked for ever would use up no budget. Error: SiteRefusal."""
    _check(folders, model_bytes)
    try:
        yield
    except (RunError, LedgerError, OSError):
        _check(folders, model_bytes)
        raise


def _check(folders: Sequence[Path], model_bytes: int) -> None:
    needed = _LEAST + _VECTORS * model_bytes
    for folder in folders:
        if shutil.disk_usage(folder).free < needed:
            raise SiteRefusal("disk_full", f"less than {needed / 1e6:.0f} MB are free in {str(folder)!r}; free some space.")
