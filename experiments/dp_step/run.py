"""One private step over one ordinary step of the same batch, per network and engine. See README.md."""

import argparse
import ctypes
import gc
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedimaging.errors import FedimagingError
from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import CLASSIFIERS, MODELS, build_model
from fedimaging.privacy.clipping import ENGINES
from fedimaging.privacy.clipping.replay import HostWatch
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.training.memory import keep_freed_memory

_SMALL_ENOUGH_3D = ("densenet", "small_cnn", "resnet18", "unet", "basic_unet", "segresnet", "dynunet", "swin_unetr")
CASES: dict[str, tuple[str, tuple[int, ...], int]] = {
    **{f"{name} 2-D": (name, (64, 64), 32) for name in MODELS if not name.startswith("torchvision")},
    **{f"{name} 3-D": (name, (32, 32, 32), 8) for name in _SMALL_ENOUGH_3D},
}
MODES = ["plain", "plain_graph", *(name for name in ENGINES if name != "auto"), "opacus_hooks", "opacus_ghost"]


def _losses(outputs: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, y, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


class _MeanLosses(nn.Module):
    """The losses as a criterion with `reduction`, the form that Opacus' ghost mode asks for."""

    reduction = "mean"

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        losses = _losses(outputs, y)
        return losses.mean() if self.reduction == "mean" else losses


def _setting(case: str, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    name, size, batch = CASES[case]
    model = build_model(ModelSpec(name=name), in_channels=1, out_channels=2, image_size=size, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1, *size, generator=generator)
    y = torch.randint(0, 2, (batch, *(() if name in CLASSIFIERS else size)), generator=generator)
    return model, x.to(device), y.to(device)


def step_of(mode: str, case: str, device: str) -> Callable[[], object]:
    """A function that takes one step of the mode: gradients ready for an optimizer, noise included."""
    model, x, y = _setting(case, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if mode == "plain":
        return lambda: torch.autograd.grad(_losses(model(x), y).mean(), parameters)
    if mode == "plain_graph":
        return _captured(lambda: torch.autograd.grad(_losses(model(x), y).mean(), parameters))
    if mode.startswith("opacus_"):
        return _opacus_step(mode, model, x, y)
    units, count = torch.arange(len(x), device=device), len(x)
    plan = DpPlan("patient", 10 * count, 0.1, 1.0, 1.0, 1e-5, 1, 1, engine=mode)
    noise = SimulatedNoise(0, "hospital_01", 1)
    number = itertools.count()  # as in training: no step's noise is used twice
    return lambda: private_gradient(model, _losses, x, y, units, count, plan, noise, next(number))


def _captured(step: Callable[[], object]) -> Callable[[], object]:
    """The same step as one CUDA graph, which our own engine uses too."""
    if not torch.cuda.is_available():
        raise RuntimeError("graphs need a CUDA device")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), HostWatch() as watch:
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    if watch.host_was_read:
        raise RuntimeError("the network reads the host's memory, which a graph must not")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _opacus_step(mode: str, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Opacus as its users run it: per record, its own clip, its own noise."""
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    ghost = mode == "opacus_ghost"
    wrapped = (
        GradSampleModuleFastGradientClipping(model, strict=False, max_grad_norm=1.0, use_ghost_clipping=True)
        if ghost
        else GradSampleModule(model, strict=False)
    )
    inner = torch.optim.SGD(model.parameters(), lr=0.0)
    kind = DPOptimizerFastGradientClipping if ghost else DPOptimizer
    optimizer = kind(inner, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=len(x))
    criterion = DPLossFastGradientClipping(wrapped, optimizer, _MeanLosses()) if ghost else _MeanLosses()

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(x), y).backward()
        optimizer.step()

    return step


def measure(case: str, device: str, repeats: int, modes: list[str]) -> dict[str, dict[str, object]]:
    """Per mode the median seconds, all modes in turn in one process, the ratio to `plain`, and on CUDA the peak memory."""
    steps: dict[str, Callable[[], object]] = {}
    peaks: dict[str, float] = {}
    found: dict[str, dict[str, object]] = {}
    for mode in modes:
        try:
            steps[mode], peaks[mode] = _first_steps(mode, case, device)
        except (FedimagingError, RuntimeError, ValueError, AttributeError, IndexError) as error:
            found[mode] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    seconds: dict[str, list[float]] = {mode: [] for mode in steps}
    for _ in range(repeats):
        for mode, step in steps.items():
            seconds[mode].append(_seconds(step, device))
    plain = statistics.median(seconds["plain"])
    for mode, values in seconds.items():
        median = statistics.median(values)
        found[mode] = {"seconds": median, "ratio": median / plain}
        if device == "cuda":
            found[mode]["peak_mb"] = peaks[mode]
    return found


def _first_steps(mode: str, case: str, device: str) -> tuple[Callable[[], object], float]:
    """The mode's step, warmed up, and on a CUDA device the memory that network, graphs and step take there at their peak."""
    if device != "cuda":
        step = step_of(mode, case, device)
        step()
        return step, math.nan
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step = step_of(mode, case, device)
    for _ in range(3):  # our engine captures the second
        step()
    torch.cuda.synchronize()
    return step, (torch.cuda.max_memory_allocated() - held) / 2**20


def _add_peaks(rows: dict[str, dict[str, object]], case: str, modes: list[str]) -> None:
    for mode, row in rows.items():
        if mode in modes and "seconds" in row:
            row["peak_mb"] = _peak_mb(mode, case)


def _seconds(step: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_mb(mode: str, case: str) -> float:
    """Memory that one step adds at its peak, in a process of its own."""
    command = [sys.executable, __file__, "--peak", mode, "--cases", case]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _own_peak_mb(mode: str, case: str) -> float:
    step = step_of(mode, case, "cpu")
    ctypes.CDLL(None).malloc_trim(0)  # what building the network left would hide what the step takes
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak that the imports left
    before = _resident_peak_mb()
    step()
    return _resident_peak_mb() - before


def _resident_peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def _verdict(rows: dict[str, dict[str, object]]) -> str:
    """What `auto`, which keeps the fastest engine, comes to, beside the best mode of Opacus itself."""
    ratios = {mode: float(str(row["ratio"])) for mode, row in rows.items() if "ratio" in row and not mode.startswith("plain")}
    ours = {mode: ratio for mode, ratio in ratios.items() if not mode.startswith("opacus_")}
    theirs = [ratio for mode, ratio in ratios.items() if mode.startswith("opacus_")]
    best = min(ours, key=ours.__getitem__, default="")
    auto = f"{best} x{ours[best]:.2f}" if best else "none of these engines"
    return f"auto: {auto}; best of Opacus {f'x{min(theirs):.2f}' if theirs else 'fails'}"


def main() -> None:
    """Measure, print a table, write results/results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--part", default="both", choices=["times", "memory", "both"], help="memory needs no quiet machine")
    parser.add_argument("--peak", choices=MODES, help="print the peak memory of one mode and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every run does
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # Opacus, where images need no gradient
    if options.peak:
        print(_own_peak_mb(options.peak, options.cases[0]))
        return
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    facts = {"device": options.device, "hardware": hardware, "threads": options.threads, "torch": torch.__version__}
    out = Path(__file__).parent / "results" / f"{options.device}.json"
    out.parent.mkdir(exist_ok=True)
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    results = before["cases"] if before.get("facts") == facts else {}  # cases measured alone join those of the same machine
    for case in options.cases:
        if options.part != "memory":
            results[case] = measure(case, options.device, options.repeats, ["plain", *(m for m in options.modes if m != "plain")])
        if options.part != "times" and options.device != "cuda":
            _add_peaks(results[case], case, options.modes)
        for mode, row in results[case].items():
            text = row.get("failed") or f"{row['seconds']:.3f} s  x{row['ratio']:.2f}  {row.get('peak_mb', math.nan):.0f} MiB"
            print(f"{case:20} {mode:14} {text}", flush=True)
        print(f"{case:20} {_verdict(results[case])}", flush=True)
        out.write_text(json.dumps({"facts": facts, "cases": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
