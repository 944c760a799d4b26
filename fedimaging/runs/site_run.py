"""`fedimaging site run`: a hospital's node, from its folder."""

import logging
import signal
import threading
from collections.abc import Callable

from fedimaging.federated.client_app import build_client_app
from fedimaging.federated.site_runner import Joining, Work, run_site
from fedimaging.files import held
from fedimaging.site.folder import SiteFolder
from fedimaging.site.hospital import largest_message, open_hospital_site


def run_hospital(folder: SiteFolder, say: Callable[[str], None]) -> None:
    """Join the federation and stay until SIGTERM or SIGINT, which end a round after its next step and keep its progress.

    A kill loses nothing: what was reserved stays charged, and the round goes on from its last checkpoint. Errors: RunError
    where another process runs this folder, or the key or the authority's certificate cannot be read.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.getLogger("flwr").setLevel(logging.ERROR)
    settings = folder.settings
    log = folder.log

    def refused(code: str) -> None:
        log.write("refused", code=code)

    work = Work(
        app=build_client_app(lambda _, study: open_hospital_site(folder, study, stop=stop.is_set), refused),
        largest_message=lambda: largest_message(folder),
        refused=refused,
        say=say,
    )
    in_use = f"site folder {str(folder.path)!r} is run by another process already; two would train its patients twice."
    with held(folder.run_lock, in_use):
        folder.log.write("node_started", server=settings.server)
        run_site(Joining(settings.name, settings.server, folder.ca_file, folder.key_file), work, stop)
        folder.log.write("node_stopped")
