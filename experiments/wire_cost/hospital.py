"""One hospital of our set-up: the pinned runner with the echo app.   python hospital.py NAME SERVER CA KEY"""

import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "stock"))

from echo.apps import client

from fedimaging.federated.site_runner import Joining, Work, run_site


def main() -> None:
    """Join and answer until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    name, server, ca, key = sys.argv[1:]
    work = Work(client, lambda: 64 * 2**20, lambda code: None, lambda text: None)
    run_site(Joining(name, server, Path(ca), Path(key)), work, stop)


main()
