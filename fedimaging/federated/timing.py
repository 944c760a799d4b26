"""When to ask again, and how to be heard meanwhile."""

import threading
from collections.abc import Callable

from fedimaging.errors import LinkDown, LinkRefused

_SHARE = 0.05
_ITS_OWN_FAULT = 500  # and above: the server stumbled, which says nothing of who asked


def pace(waited_seconds: float, *, least: float, most: float, share: float = _SHARE) -> float:
    """Seconds until the next question to somebody who has let us wait for so long: a share of it, between two bounds.

    An answer is then late by at most that share of the time it took, and the number of questions grows only with the
    logarithm of the wait: quick rounds are asked for often, hours of training seldom.
    """
    return min(most, max(least, share * waited_seconds))


class Heartbeat:
    """Calls `beat` every so many seconds in a thread of its own. `lost` is set, and beating ends, once the other end says
    that it does not know us; silence is borne."""

    def __init__(self, beat: Callable[[], bool], every_seconds: float) -> None:
        self._beat, self._every = beat, every_seconds
        self._stop, self.lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                known = self._beat()
            except LinkDown:
                continue
            except LinkRefused as refusal:
                known = refusal.status >= _ITS_OWN_FAULT
            if not known:
                self.lost.set()
                return
