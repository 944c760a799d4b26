"""Flower's own simulation engine on Ray: many cores, or an existing Ray cluster."""

import logging
import os
import warnings
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp


def run_on_ray(
    server_app: ServerApp, client_app: ClientApp, n_nodes: int, *, workers: int, address: str | None = None
) -> None:
    """Run the apps over `n_nodes` virtual hospitals with `workers` actors at a time. Error: what the ServerApp raises.

    Every actor gets its share of the threads, as an in-process worker does.
    """
    from flwr.simulation import run_simulation

    cores = len(os.sched_getaffinity(0))
    init: dict[str, Any] = {"address": address} if address else {"num_cpus": max(cores, workers)}
    init["logging_level"] = logging.ERROR
    config: dict[str, Any] = {
        "init_args": init,
        "client_resources": {"num_cpus": max(1, cores // workers), "num_gpus": 0.0},
    }
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Flower deprecates run_simulation; its successor starts daemons and needs an app folder
        run_simulation(server_app, client_app, n_nodes, backend_config=config)
