"""This machine: what it is, and how many worker processes make the best of it for a study."""

import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fedimaging import __version__
from fedimaging.site.site import Site

_PROBE_BATCH = 16


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("torch", "monai", "flwr", "opacus", "dp-accounting", "numpy", "scikit-learn")
    return {"python": platform.python_version(), "fedimaging": __version__, **{name: version(name) for name in names}}


def machine(device: str) -> dict[str, Any]:
    """CPU name, cores this process may use, memory, device."""
    return {
        "cpu": _cpu_name(), "cores": cores(), "memory_gb": _memory_gb(), "device": device,
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def peak_memory_mb() -> float:
    """Largest resident set of this process or any finished child, in MB."""
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(kilobytes / 1024, 1)


def choose_workers(site: Site, records_per_site: Mapping[str, int]) -> tuple[int, str]:
    """How many processes finish a round soonest, and why, measured on this study's own network.

    Small networks want one process a core, big ones one process with all threads. A round's time is estimated for
    both from one timed forward and backward pass each, and from the hospitals' sizes: one hospital that holds most
    of the data keeps one process busy while the others wait. Measured in forked processes, so that this one starts
    no thread pool before it forks its workers.
    """
    count = min(cores(), len(records_per_site))
    if count < 2 or site.bench.device.type != "cpu":
        return 1, "one core, one hospital, or an accelerator: one process"
    alone = _timed_passes(site, processes=1, threads=cores())
    shared = _timed_passes(site, processes=count, threads=max(1, cores() // count))
    total, largest = sum(records_per_site.values()), max(records_per_site.values())
    one_process = total * alone
    many = max(total / count, largest) * shared
    facts = f"a pass of {_PROBE_BATCH} scans took {alone:.3f} s in one process with all threads, {shared:.3f} s in each of {count}"
    return (count, facts) if many < one_process else (1, facts)


def choose_engine(site: Site, workers: int) -> dict[str, str]:
    """The clipping engine for this study on this machine, and why. `auto` is measured in a forked process with the
    threads a worker will have, on scans of the right shape; all sites then use the same engine."""
    if site.plan is None:
        return {"engine": "none", "engine_reason": "no differential privacy"}
    if site.plan.engine != "auto":
        return {"engine": site.plan.engine, "engine_reason": "the study names it"}
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_measure_engines, args=(site, max(1, cores() // workers), queue), daemon=True)
    child.start()
    while child.is_alive() and queue.empty():
        child.join(0.02)
    if queue.empty():
        return {"engine": "loop", "engine_reason": "measuring the engines failed; the loop works for every network"}
    name, seconds = queue.get()
    child.join()
    facts = ", ".join(f"{engine} {value:.3f} s" for engine, value in sorted(seconds.items(), key=lambda item: item[1]))
    return {"engine": name, "engine_reason": f"measured on one step: {facts}"}


def _measure_engines(site: Site, threads: int, queue: Any) -> None:
    import numpy as np
    import torch

    from fedimaging.privacy.clipping import choose_engine as measure

    torch.set_num_threads(threads)
    assert site.plan is not None and site.bench.privacy is not None
    units = max(1, min(64, round(site.plan.denominator)))
    places = np.arange(units) % len(site.train_records)
    x = site.train_records.images(places).to(site.bench.device)
    y = site.train_records.targets(places, site.bench.task.kind).to(site.bench.device)
    choice = measure(
        site.bench.model, site.bench.task.losses, torch.rand_like(x), y, torch.arange(units, device=x.device), units,
        site.plan.clip_norm, memory_mb=site.plan.memory_mb,
    )
    queue.put((choice.name, dict(choice.seconds)))


def _timed_passes(site: Site, *, processes: int, threads: int) -> float:
    """Seconds of one pass in each of so many processes at once (the slowest counts)."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    start = context.Barrier(processes)
    children = [
        context.Process(target=_pass, args=(site, threads, start, queue), daemon=True) for _ in range(processes)
    ]
    for child in children:
        child.start()
    seconds = [float(queue.get()) for _ in children]
    for child in children:
        child.join()
    return max(seconds)


def _pass(site: Site, threads: int, start: Any, queue: Any) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    bench, records = site.bench, site.train_records
    places = np.arange(_PROBE_BATCH) % len(records)
    x, y = records.images(places), records.targets(places, bench.task.kind)
    seconds = float("inf")
    try:
        for warm in (True, False):
            start.wait(60)
            began = time.perf_counter()
            bench.task.losses(bench.model(x), y).mean().backward()
            seconds = seconds if warm else time.perf_counter() - began
    finally:
        queue.put(seconds)


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
