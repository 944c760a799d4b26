"""Ray: Flower's own simulation engine on many cores or an existing cluster, and whole runs of a sweep on a cluster."""

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedimaging.errors import RunError

_ANSWER_SECONDS = 5.0


def run_on_ray(
    server_app: ServerApp, client_app: ClientApp, n_nodes: int, *, workers: int, address: str | None = None
) -> None:
    """Run the apps over `n_nodes` virtual hospitals with `workers` actors at a time. Error: what the ServerApp raises.

    Every actor gets its share of the threads, as an in-process worker does.
    """
    import ray
    from flwr.simulation import run_simulation

    cores = len(os.sched_getaffinity(0))
    config: dict[str, Any] = {"client_resources": {"num_cpus": max(1, cores // workers), "num_gpus": 0.0}}
    logging.getLogger("flwr").setLevel(logging.ERROR)
    # Connected here, because an error in Flower's own thread would leave its server waiting for ever.
    _connect(address, max(cores, workers))
    try:
        with warnings.catch_warnings():
            # Flower deprecates run_simulation; its successor starts daemons and needs an app folder.
            warnings.simplefilter("ignore")
            run_simulation(server_app, client_app, n_nodes, backend_config=config)
    finally:
        ray.shutdown()


def check_cluster(address: str) -> None:
    """Does anybody answer there? Ray itself waits for minutes. Error: RunError where nobody does.

    "auto" and other addresses that name no port are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunError(_no_cluster(address, error)) from None


def _no_cluster(address: str, error: Exception) -> str:
    return (
        f"--ray-address={address!r} leads to no Ray cluster ({str(error).splitlines()[0]}); start one with "
        "`ray start --head`, or leave it out."
    )


def _connect(address: str | None, cores: int) -> None:
    """Join the cluster at an address, or start one on this machine. Error: RunError where there is none."""
    import ray

    if address:
        check_cluster(address)
    # "local": else Ray would first look for a cluster that somebody left behind on this machine, and wait for it.
    where: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": cores}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**where, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        failed = f"Ray could not be started on this machine ({str(error).splitlines()[0]}); run without it."
        raise RunError(_no_cluster(address, error) if address else failed) from None


class RayCluster:
    """An existing Ray cluster that does tasks with `work`, each on one core. A context manager: while it is open the cluster's
    processes are used again; they die with it, and with this process. Error: RunError where there is no cluster."""

    def __init__(self, work: Callable[[dict[str, Any]], dict[str, Any]], address: str) -> None:
        self._work, self._address = work, address

    def __enter__(self) -> "RayCluster":
        _connect(self._address, 0)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def work_off(self, tasks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What `work` returns for each task, as it comes; {"kind": "failed", "run": ..., "text": ...} for a task that raised,
        or whose process died twice."""
        import ray

        remote = ray.remote(num_cpus=1, max_retries=1)(self._work)
        running = {remote.remote(task): task for task in tasks}
        while running:
            finished, _ = ray.wait(list(running))
            for place in finished:
                task = running.pop(place)
                try:
                    yield ray.get(place)
                except ray.exceptions.RayError as error:
                    text = f"its process on the cluster died: {str(error).splitlines()[0]}"
                    yield {"kind": "failed", "run": task["run"], "text": text, "fault": "RunError"}
