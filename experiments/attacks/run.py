"""What attacks find with and without privacy, and whether an audit sees a broken mechanism. See README.md.

    python experiments/attacks/run.py --data FOLDER_WITH_THE_NPZ [--work FOLDER]

Work goes to a folder; parts that are finished there are not done again.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedimaging.models.layout import Layout
from fedimaging.models.zoo import MODELS
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.runs import machine
from fedimaging.runs.audit import audit
from fedimaging.runs.audit_options import AuditOptions
from fedimaging.runs.live import LiveView
from fedimaging.runs.options import Options
from fedimaging.runs.simulate import simulate
from fedimaging.study.load import load

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
MLP = (
    "data.image_size=[28,28]", "data.phantoms.patients=300", "model.name=mlp", "model.options={}", "training.batch_size=16",
    "training.learning_rate=0.1", "federation.rounds=3", "federation.average_last=1", "evaluation.every=0",
)
OVERFITTED = (
    "data.image_size=[16,16]", "data.phantoms.patients=400", "data.phantoms.hospitals=2", "data.phantoms.lesion_contrast=0.01",
    "data.phantoms.scans_per_patient=[1,1]", "data.split.test=0.5", "model.name=mlp", "model.options={}",
    "training.optimizer=adam", "training.learning_rate=0.001", "training.batch_size=16", "training.local_steps=null",
    "training.local_epochs=200", "federation.algorithm=fedavg", "federation.server_momentum=0", "federation.rounds=1",
    "federation.average_last=1", "evaluation.every=0",
)


class Mlp(nn.Module):
    """A dense layer on the image itself: the network that an update gives away most of."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(size, 64), nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *spatial) -> (B, K)."""
        return self.last(torch.tanh(self.first(torch.flatten(x, 1))))


def mlp(layout: Layout) -> nn.Module:
    """For `model.name: mlp`, in this experiment only."""
    return Mlp(layout.in_channels * int(torch.tensor(layout.image_size).prod()), layout.out_channels)


@contextmanager
def half_noise() -> Iterator[None]:
    """In this process only: every simulated noise has half the deviation that it is asked for."""
    whole = SimulatedNoise.add_gaussian

    def half(self: SimulatedNoise, tensors: Sequence[Tensor], std: float, step: int, *, over: float = 1.0) -> None:
        whole(self, tensors, std / 2, step, over=over)

    SimulatedNoise.add_gaussian = half  # type: ignore[method-assign]
    try:
        yield
    finally:
        SimulatedNoise.add_gaussian = whole  # type: ignore[method-assign]


def trained(config: str, overrides: Sequence[str], out: Path) -> Path:
    """The run of a study in `out`, trained now or before."""
    study = load(CONFIGS / config, overrides)
    with LiveView(study.federation.rounds, quiet=True) as view:
        simulate(study, out, Options(resume=out.exists(), report=False, workers=1), view)
    return out


def attacked(run: Path, **options: Any) -> dict[str, Any]:
    """The audit of a run."""
    return audit(run, AuditOptions(**options), lambda text: print(f"{run.name}: {text}", flush=True))


def everything(data: Path, work: Path) -> dict[str, dict[str, Any]]:
    """All audits by name, in the order of the README."""
    pneumonia = (f"data.root={data}",)
    inversion, membership = {"attacks": ("inversion",)}, {"attacks": ("membership",), "shadows": 4}
    found = {
        "mlp, no privacy": attacked(trained("quickstart.yaml", (*MLP, "privacy=null"), work / "mlp_plain"), **inversion),
        "mlp, ε = 8": attacked(trained("quickstart.yaml", MLP, work / "mlp_private"), **inversion),
        "overfitted, no privacy": attacked(
            trained("quickstart.yaml", (*OVERFITTED, "privacy=null"), work / "overfitted_plain"), **membership
        ),
        "overfitted, ε = 8": attacked(trained("quickstart.yaml", OVERFITTED, work / "overfitted_private"), **membership),
        "PneumoniaMNIST, ε = 8": attacked(trained("pneumonia_mnist.yaml", pneumonia, work / "pneumonia")),
    }
    with half_noise():
        broken = trained("pneumonia_mnist.yaml", pneumonia, work / "half_noise")
        same = work / "half_noise_same_code"
        if not same.exists():
            shutil.copytree(broken, same)
        found["PneumoniaMNIST, half noise, audited with the same broken code"] = attacked(same, attacks=("canaries",))
    found["PneumoniaMNIST, half noise, audited with whole code"] = attacked(broken, attacks=("canaries",))
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| study | attack | target, per | figures | control | verdict |", "|---|---|---|---|---|---|"]
    for name, tree in found.items():
        for one in tree["attacks"]:
            control = one["groups"].get("control", {})
            target = f"{one['target']}, {one['unit']}"
            cells = (name, one["name"], target, _words(one["metrics"]), _words(control), one["verdict"])
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _words(metrics: dict[str, Any]) -> str:
    said = []
    for key, value in metrics.items():
        if value is not None:
            ends = "" if value["low"] is None or value["high"] is None else f" ({value['low']:.3g} to {value['high']:.3g})"
            said.append(f"{key} {value['value']:.3g}{ends}")
    return ", ".join(said)


def main() -> None:
    """Run all, write results/ and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fedimaging_attacks")
    given = parser.parse_args()
    MODELS["mlp"] = mlp
    found = everything(given.data, given.work)
    text = table(found)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions().items())
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "table.md").write_text(f"{text}\n\n{versions}\n", encoding="utf-8")
    (HERE / "results" / "audits.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text, versions, sep="\n\n")


if __name__ == "__main__":
    main()
