"""This machine: what it is, and how many worker processes make the best of it for a study."""

import json
import multiprocessing
import os
import platform
import resource
import signal
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from fedimaging import __version__
from fedimaging.data.store import cache_root, key_of
from fedimaging.errors import RunError
from fedimaging.files import held, write_json
from fedimaging.site.site import Site
from fedimaging.training.workbench import MemoryFormat

_PROBE_BATCH = 8
_LONG_PASS_SECONDS = 0.2
_WORTH_IT = 0.95  # channels last must win by more than the noise of a measurement


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


def remembered(what: object, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` found the first time on this machine for `what` (JSON): kept beside the image store, so that a study
    that is run again is run in the same way, bit for bit, whatever else the machine does meanwhile."""
    path = cache_root(None) / "measured" / f"{key_of(what, versions(), machine(''))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.parent / ".lock"):  # of runs that start together one measures, undisturbed, and all keep to it
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = measure()
            write_json(path, found)
    return found


def choose_workers(site: Site, records_per_site: Mapping[str, int]) -> tuple[int, str]:
    """How many processes finish a round soonest, and why, measured on this study's own network.

    Small networks want one process a core (each with one thread), big ones one process with all threads. A round's time
    is estimated for both from a timed forward and backward pass each, and from the hospitals' sizes: one hospital that
    holds most of the data keeps one process busy while the others wait.
    """
    count = min(cores(), len(records_per_site))
    if count < 2 or site.bench.device.type != "cpu":
        return 1, "one core, one hospital, or an accelerator: one process"
    alone = _one_pass(site)
    shared = max(_in_children(count, lambda: _one_pass(site)))
    total, largest = sum(records_per_site.values()), max(records_per_site.values())
    facts = f"{_PROBE_BATCH} scans took {alone:.3f} s in one process with all threads, {shared:.3f} s in each of {count}"
    return (count, facts) if max(total / count, largest) * shared < total * alone else (1, facts)


def choose_memory_format(site: Site, workers: int) -> dict[str, str]:
    """How activations lie in memory, and why: measured with the threads a worker will have. Private training keeps
    PyTorch's own layout, which the clipping engines are written for."""
    if site.plan is not None:
        return {"memory_format": "contiguous", "memory_format_reason": "private training keeps it"}
    usual, last = _measure_formats(site) if workers == 1 else _in_children(1, lambda: _measure_formats(site))[0]
    chosen = "channels_last" if last < _WORTH_IT * usual else "contiguous"
    facts = f"{_PROBE_BATCH} scans took {usual:.3f} s contiguous, {last:.3f} s with channels last"
    return {"memory_format": chosen, "memory_format_reason": facts}


def _measure_formats(site: Site) -> tuple[float, float]:
    formats: tuple[MemoryFormat, ...] = ("contiguous", "channels_last", "contiguous")
    seconds = []
    for name in formats:
        site.bench.use_memory_format(name)
        seconds.append(_one_pass(site))
    return min(seconds[0], seconds[2]), seconds[1]


def choose_engine(site: Site, workers: int) -> dict[str, str]:
    """The clipping engine for this study on this machine, and why. `auto` is measured once, with the threads a worker
    will have, on scans of the right shape; all sites then use the same engine."""
    if site.plan is None:
        return {"engine": "none", "engine_reason": "no differential privacy"}
    if site.plan.engine != "auto":
        return {"engine": site.plan.engine, "engine_reason": "the study names it"}
    name, seconds = _measure_engines(site) if workers == 1 else _in_children(1, lambda: _measure_engines(site))[0]
    facts = ", ".join(f"{engine} {value:.3f} s" for engine, value in sorted(seconds.items(), key=lambda item: item[1]))
    return {"engine": name, "engine_reason": f"measured on one step: {facts}"}


def _measure_engines(site: Site) -> tuple[str, dict[str, float]]:
    import numpy as np
    import torch

    from fedimaging.privacy.clipping import choose_engine as measure

    assert site.plan is not None
    units = max(1, min(64, round(site.plan.denominator)))
    places = np.arange(units) % len(site.train_records)
    x = torch.zeros(units, *site.train_records.inputs(places[:1]).shape[1:], device=site.bench.device)
    y = site.train_records.targets(places, site.bench.task.kind).to(site.bench.device)
    choice = measure(
        site.bench.network(site.train_records), site.bench.task.losses, x + torch.linspace(0, 1, x.shape[-1], device=x.device), y,
        torch.arange(units, device=x.device), units, site.plan.clip_norm, memory_mb=site.plan.memory_mb,
    )
    return choice.name, dict(choice.seconds)


def _one_pass(site: Site) -> float:
    """Seconds of one forward and backward pass: the second, unless the first was so long that its warm-up hardly counts."""
    import numpy as np

    bench, records = site.bench, site.train_records
    places = np.arange(_PROBE_BATCH) % len(records)
    x, y = bench.placed(records.inputs(places)), records.targets(places, bench.task.kind).to(bench.device)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        bench.task.losses(bench.network(records)(x), y).mean().backward()
        seconds = time.perf_counter() - began
        if seconds > _LONG_PASS_SECONDS:
            break
    bench.forget_gradients()
    return seconds


def _in_children(count: int, work: Callable[[], Any]) -> list[Any]:
    """`work` in so many forked processes at once, each with one thread; what each returned. Error: RunError."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    children = [context.Process(target=_child, args=(work, writer), daemon=True) for _, writer in pipes]
    for child in children:
        child.start()
    results = []
    for (reader, writer), child in zip(pipes, children, strict=True):
        writer.close()
        try:
            results.append(reader.recv())
        except EOFError:
            raise RunError("a process that measured this machine died (out of memory?); give --workers a number.") from None
        child.join()
    return results


def _child(work: Callable[[], Any], writer: Any) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    writer.send(work())


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
