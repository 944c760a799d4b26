"""Tests 3, 4, 5, 6 and 11: the clipped sum, by every engine, against autograd written out."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from rows import Row, below, near, refused
from torch import Tensor, nn

from fedimaging.errors import FedimagingError
from fedimaging.models.dp_safe import cross_scan_influence, require_independent_scans
from fedimaging.models.spec import ModelSpec
from fedimaging.models.zoo import CLASSIFIERS, MODELS, build_model
from fedimaging.privacy.clipping import Losses, Unsupported, clipped_sum
from fedimaging.privacy.dpsgd import DpPlan, plan_for, private_gradient
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.privacy.spec import PrivacySpec
from fedimaging.training.tasks import cross_entropy_losses, dice_cross_entropy_losses

ENGINES = ("loop", "vmap", "opacus", "fused")
NARROW: dict[str, dict[str, object]] = {
    "small_cnn": {"width": 4}, "wavelet_net": {"scales": 2, "angles": 4},
    "densenet": {"init_features": 8, "growth_rate": 4, "block_config": [1, 2]},
    "resnet18": {"widen_factor": 0.125}, "resnet50": {"widen_factor": 0.125},
    "vit": {"patch_size": 8, "hidden_size": 12, "mlp_dim": 16, "num_layers": 2, "num_heads": 2},
    "unet": {"channels": [4, 8, 12], "num_res_units": 1}, "basic_unet": {"features": [4, 4, 8, 8, 12, 4]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1]}, "dynunet": {"filters": [4, 8, 12], "strides": [1, 2, 2]},
    "swin_unetr": {"depths": [1, 1, 1, 1]},
}  # fmt: skip
SIDES = {"resnet50": 64, "swin_unetr": 32, "densenet121": 32, "efficientnet_b0": 32}
LARGE = ("densenet121", "efficientnet_b0")
IN_3D = ("small_cnn", "densenet", "resnet18", "vit", "unet", "basic_unet", "segresnet", "dynunet")
Batch = tuple[Tensor, Tensor, Tensor]


class Small(nn.Module):
    """A network that every engine takes, with a head for classes or for a map of them."""

    def __init__(self, *, maps: bool = False, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.maps = nn.Conv2d(2, 8, 3, padding=1), norm or nn.GroupNorm(2, 8), maps
        self.head: nn.Module = nn.Conv2d(8, 3, 1) if maps else nn.Linear(8 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, 3), or (B, 3, H, W)."""
        features = torch.tanh(self.norm(self.conv(x)))
        return self.head(features if self.maps else F.adaptive_avg_pool2d(features, 3).flatten(1))


def batch_of(counts: list[int], *size: int, maps: bool = False, dtype: torch.dtype = torch.float64) -> Batch:
    """Random scans, labels or masks of 3 classes, and the unit of each scan."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(counts), 2, *size, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (len(x), *(size if maps else ())), generator=generator)
    return x, y, torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def flat(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """All of them as one float64 vector."""
    return torch.cat([part.double().flatten() for part in parts])


def total(engine: str, model: nn.Module, losses: Losses, batch: Batch, n_units: int, clip: float) -> Tensor:
    """The engine's clipped sum."""
    return flat(clipped_sum(model, losses, *batch, n_units, clip, engine=engine).sum)


def by_hand(model: nn.Module, losses: Losses, batch: Batch, clip: float) -> Tensor:
    """The definition: one unit after another, autograd, scaled to the clip, added up."""
    x, y, unit_of_scan = batch
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for unit in unit_of_scan.unique():
        rows = unit_of_scan == unit
        gradients = torch.autograd.grad(
            losses(model(x[rows]), y[rows]).mean(), parameters, allow_unused=True, materialize_grads=True
        )
        gradient = flat(gradients)
        sums += gradient * min(1.0, clip / float(gradient.norm()))
    return sums


def independence() -> list[Row]:
    """Test 3."""
    torch.manual_seed(0)
    model, (x, y, unit) = Small().double(), batch_of([1, 3, 2, 4, 1], 9, 8)
    rest, moved = unit > 0, []
    for engine in ENGINES:
        alone = []
        for others in (x, torch.where(rest[:, None, None, None], x.flip(0) * 3, x)):
            everyone = total(engine, model, cross_entropy_losses, (others, y, unit), 5, 0.5)
            without = total(engine, model, cross_entropy_losses, (others[rest], y[rest], unit[rest] - 1), 4, 0.5)
            alone.append(everyone - without)
        moved.append(float((alone[0] - alone[1]).norm() / alone[0].norm()))
    mixing = Small(norm=nn.BatchNorm2d(8, affine=False)).double()
    influence = cross_scan_influence(mixing, x[:3], x[3:6])
    coupled = _batch_dice_change()
    return [
        below("change of a patient's gradient when all others change, worst engine", max(moved), 1e-6),
        Row("the same for BatchNorm(affine=False), of its output", "seen (> 0.01)", f"{influence:.2f}", influence > 0.01),
        refused("a network with BatchNorm(affine=False)", lambda: require_independent_scans(mixing, x[:3], x[3:6])),
        Row("the same for Dice over the batch, of its gradient", "seen (0.008 in the notes)", f"{coupled:.4f}", coupled > 1e-4),
        *(refused(f"that loss in engine {engine}", partial(_with_batch_dice, engine)) for engine in ENGINES),
    ]


def _batch_dice(outputs: Tensor, y: Tensor) -> Tensor:
    """One Dice for all scans together: one number, in which every scan's gradient knows the others."""
    truth = (y.unsqueeze(1) == torch.arange(3).view(3, 1, 1)).to(outputs)
    found = outputs.softmax(1)
    return 1 - (2 * (found * truth).sum((0, 2, 3)) / (found + truth).sum((0, 2, 3))).mean()


def _batch_dice_change() -> float:
    """How much scan 0's gradient under one Dice for all moves with the others: of the outputs, which are its own."""
    generator = torch.Generator().manual_seed(2)
    outputs, y = torch.randn(3, 3, 8, 8, generator=generator), torch.randint(0, 3, (3, 8, 8), generator=generator)
    found = []
    for others in (outputs, outputs.flip(0)):
        leaf = torch.cat([outputs[:1], others[1:]]).requires_grad_()
        found.append(torch.autograd.grad(_batch_dice(leaf, y), leaf)[0][0])
    return float((found[0] - found[1]).norm() / found[0].norm())


def _with_batch_dice(engine: str) -> None:
    total(engine, Small(maps=True).double(), _batch_dice, batch_of([1, 2], 9, 8, maps=True), 2, 1.0)


def oracle() -> list[Row]:
    """Test 4: the zoo at its narrowest, 1 to 4 scans a patient (1 and 2 in 3-D and in the two largest networks)."""
    exact: list[float] = []
    single: list[tuple[float, float]] = []  # error, and that of autograd itself in float32
    networks = 0
    for name, model, batch, n_units in _zoo():
        losses = cross_entropy_losses if name in CLASSIFIERS else dice_cross_entropy_losses
        networks += 1
        expected = by_hand(model.double(), losses, batch, 0.1)
        exact += _errors(model, losses, batch, n_units, expected)
        _smooth(model)
        expected = by_hand(model, losses, batch, 0.1)
        rough = (batch[0].float(), *batch[1:])
        rounding = _error(by_hand(model.float(), losses, rough, 0.1), expected)
        single += [(error, rounding) for error in _errors(model, losses, rough, n_units, expected)]
    worst, excess = max(error for error, _ in single), max(error / rounding for error, rounding in single)
    return [
        Row("networks, 2-D and 3-D, and sums compared", "18 models", f"{networks}, {len(exact) + len(single)}", networks >= 18),
        below("largest relative error in float64", max(exact), 1e-12),
        Row("largest in float32, and over that of one-by-one autograd in float32", "< 1e-5, or that rounding's own size",
            f"{worst:.1e}, {excess:.1f} times", worst < 1e-5 or excess < 3),
    ]  # fmt: skip


def _errors(model: nn.Module, losses: Losses, batch: Batch, n_units: int, expected: Tensor) -> list[float]:
    """Relative error of every engine that takes the network."""
    found = []
    for engine in ENGINES:
        with suppress(Unsupported):
            found.append(_error(total(engine, model, losses, batch, n_units, 0.1), expected))
    return found


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _zoo() -> Iterator[tuple[str, nn.Module, Batch, int]]:
    """Every network that is built without a download, with a batch for it."""
    flat_names = [name for name in MODELS if not name.startswith("torchvision_")]
    for name, dims in [*((name, 2) for name in flat_names), *((name, 3) for name in IN_3D)]:
        size = (SIDES.get(name, 16),) * dims
        with suppress(FedimagingError):  # a network that cannot take so small a volume
            spec = ModelSpec(name=name, options=NARROW.get(name, {}))
            model = build_model(spec, in_channels=2, out_channels=3, image_size=size, seed=0)
            counts = [1, 3, 2, 4] if dims == 2 and name not in LARGE else [1, 2]
            yield name, model, batch_of(counts, *size, maps=name not in CLASSIFIERS), len(counts)


def _smooth(model: nn.Module) -> None:
    """Take out the kinks: float32 moves an input near 0 to the other side, and the gradient jumps, in any engine."""
    for name, layer in model.named_children():
        if isinstance(layer, nn.ReLU | nn.PReLU | nn.LeakyReLU):
            setattr(model, name, nn.SiLU())
        _smooth(layer)


def removal() -> list[Row]:
    """Test 5."""
    rows, clip = [], 0.5
    for maps, losses in ((False, cross_entropy_losses), (True, dice_cross_entropy_losses)):
        for engine in ENGINES:
            torch.manual_seed(0)
            model, (x, y, unit) = Small(maps=maps), batch_of([1, 3, 2, 4, 1], 9, 8, maps=maps, dtype=torch.float32)
            with torch.no_grad():
                model.head.weight.mul_(1e4)  # type: ignore[operator]
            x[unit == 3] *= 1e3
            rest = unit != 3
            left = unit[rest] - (unit[rest] > 3).long()
            moved = total(engine, model, losses, (x, y, unit), 5, clip) - total(
                engine, model, losses, (x[rest], y[rest], left), 4, clip
            )
            kind = "Dice + cross-entropy" if maps else "cross-entropy"
            rows.append(below(f"{engine}, {kind}: moved, in C", float(moved.norm()) / clip, 1 + 1e-5))
    return [*rows, refused("a loss that is one number, in engine opacus (ghost: 18.4 C)", _one_number)]


def _one_number() -> None:
    from monai.losses import DiceCELoss

    combined = DiceCELoss(softmax=True, to_onehot_y=True)
    total("opacus", Small(maps=True).double(), lambda o, y: combined(o, y[:, None]), batch_of([1, 1], 9, 8, maps=True), 2, 1.0)


def patient_unit() -> list[Row]:
    """Test 6."""
    torch.manual_seed(0)
    model, (x, y, _) = Small().double(), batch_of([1], 9, 8)
    rows = []
    for engine in ENGINES:
        x4, y4 = x.repeat(4, 1, 1, 1), y.repeat(4)
        patient = total(engine, model, cross_entropy_losses, (x4, y4, torch.zeros(4, dtype=torch.int64)), 1, 0.01)
        records = total(engine, model, cross_entropy_losses, (x4, y4, torch.arange(4)), 4, 0.01)
        rows.append(below(f"{engine}: 4 identical scans of a patient, in C", float(patient.norm()) / 0.01, 1 + 1e-5))
        rows.append(near(f"{engine}: the same as 4 records", float(records.norm()) / 0.01, 4.0, 1e-4))
    return rows


def denominator() -> list[Row]:
    """Test 11."""
    plan = replace(plan_for(PrivacySpec(noise_multiplier=1.0), 2000, 32, 63, 50), noise_multiplier=0.0, engine="loop")
    one = torch.zeros(50, 4)
    one[0, 0] = 0.5
    steps = [step_of(one[:count], plan) for count in (20, 50)]
    return [
        Row("batches of 20 and 50 with one gradient: the steps", "equal", "equal" if torch.equal(*steps) else "differ",
            torch.equal(*steps)),
        near("2000 patients, 32 expected: divided by", 0.5 / float(steps[0][0]), 32.0, 1e-5, 5),
    ]  # fmt: skip


def step_of(x: Tensor, plan: DpPlan, step: int = 0, model: nn.Module | None = None) -> Tensor:
    """One private step in which each row of x is a patient and (of the first weights) its own gradient."""
    units, noise = torch.arange(len(x)), SimulatedNoise(0, "hospital_01", 1)
    model = model or nn.Linear(x.shape[1], 1, bias=False)
    return flat(private_gradient(model, _first_output, x, torch.ones(len(x)), units, len(x), plan, noise, step))


def _first_output(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs[:, 0] * y
