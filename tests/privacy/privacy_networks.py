"""Small networks and losses that the tests of private gradients share. Shapes: scans (S, 2, ...), 3 classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EveryLayer(nn.Module):
    """Every layer that engine `fused` knows, and every awkward use of one: groups, strides, dilation, 'same', output
    padding, a layer called twice, an in-place activation after a layer, a tied weight, a Gram and a direct layer."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.group = nn.GroupNorm(2, 6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
        self.slopes, self.slope = nn.PReLU(6), nn.PReLU()
        self.instance = nn.InstanceNorm2d(6, affine=True)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.flat_up = nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2)
        self.same = nn.Conv2d(4, 4, 3, dilation=2, padding="same")
        self.wide = nn.Conv2d(4, 96, 3, stride=4, padding=1)
        self.deep = nn.Conv2d(96, 96, 3, padding=1)
        self.back = nn.ConvTranspose2d(96, 4, 2, stride=2, bias=False)
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        self.layer = nn.LayerNorm(4)
        self.words = nn.Embedding(5, 4, padding_idx=0)
        self.token = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.token.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = (x[:, 0, 0, :3].detach().nan_to_num().abs() * 2).long().clamp(0, 4)
        x = self.slope(self.group(self.down(x)))
        x = self.twice(self.twice(x) + x).relu_()
        x = self.same(self.flat_up(self.up(self.instance(self.slopes(x)))))
        far = self.back(self.deep(self.wide(x))).mean((2, 3))
        tokens = self.tied(self.token(self.layer(x.flatten(2).mT[:, :7])))
        line = self.line(tokens.mT).mean(2)
        return self.head(line + far + self.words(places).sum(1))


class Volume(nn.Module):
    """A 3-D network with a segmentation output (S, 3, D, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(1, 4)
        self.middle = nn.Conv3d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose3d(4, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.silu(self.middle(F.silu(self.norm(self.down(x))))))


def class_losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy a scan, (S,)."""
    return F.cross_entropy(outputs, y, reduction="none")


def mask_losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Soft Dice plus cross-entropy a scan, (S,)."""
    truth = (y.flatten(1)[:, None] == torch.arange(3)[:, None]).to(outputs)
    guess = outputs.softmax(1).flatten(2)
    dice = (2 * (guess * truth).sum(2) + 1) / (guess.sum(2) + truth.sum(2) + 1)
    return F.cross_entropy(outputs, y, reduction="none").flatten(1).mean(1) + 1 - dice.mean(1)


def scans(counts: list[int], *size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Random x (S, 2, *size), y (S,) and unit_of_scan (S,) for units with so many scans each."""
    generator = torch.Generator().manual_seed(1)
    total = sum(counts)
    x = torch.randn(total, 2, *size, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (total,), generator=generator)
    return x, y, torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def flat(gradients: list[Tensor]) -> Tensor:
    """All gradients as one vector, float64."""
    return torch.cat([part.double().flatten() for part in gradients])
