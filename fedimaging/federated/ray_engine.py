"""Ray: Flower's own simulation engine on many cores or an existing cluster, and whole runs of a sweep on a cluster."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedimaging.errors import RunError


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


class RayCluster:
    """An existing Ray cluster that does tasks with `work`, each on one core. A context manager: while it is open the cluster's
    processes are used again; they die with it, and with this process. Error: RunError where there is no cluster."""

    def __init__(self, work: Callable[[dict[str, Any]], dict[str, Any]], address: str) -> None:
        self._work, self._address = work, address

    def __enter__(self) -> "RayCluster":
        import ray

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address=self._address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RunError(
                f"--ray-address={self._address!r} leads to no Ray cluster ({str(error).splitlines()[0]}); start one with "
                "`ray start --head`, or use --jobs."
            ) from None
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
