"""MONAI's windowed attention, whose table of relative positions belongs to no layer. The whole network: test_clipping_zoo.py."""

import pytest
import torch
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from fedimaging.privacy.clipping import Unsupported, clipped_sum
from tests.privacy.privacy_networks import flat

COUNTS, WINDOWS = [1, 3, 2], 2


class Attending(nn.Module):
    """Scans (S, 8, 4, 4), each seen as two windows of 2 x 4 places; `mask` keeps places apart, as shifted windows do."""

    def __init__(self, mask: Tensor | None = None, drop: float = 0.0) -> None:
        super().__init__()
        self.attention, self.mask = WindowAttention(8, 2, (2, 4), qkv_bias=True, attn_drop=drop), mask
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.flatten(2).mT.reshape(-1, 8, 8)
        return self.head(self.attention(windows, self.mask).reshape(len(x), -1, 8).mean(1))


class Scaled(WindowAttention):
    """As if MONAI scaled its table one day."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().forward(x, mask)


def _losses(outputs: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, y, reduction="none")


def _sum(model: nn.Module, engine: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(COUNTS), 8, 4, 4, generator=generator, dtype=torch.float64)
    unit = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    y = torch.randint(0, 2, (len(x),), generator=generator)
    return flat(clipped_sum(model.double(), _losses, x, y, unit, len(COUNTS), 0.05, engine=engine).sum)


@pytest.mark.parametrize("masked", [False, True])
def test_4_the_table_of_relative_positions(masked: bool) -> None:
    torch.manual_seed(0)
    apart = torch.zeros(WINDOWS, 8, 8, dtype=torch.float64)
    apart[1, :4, 4:] = apart[1, 4:, :4] = -100.0
    model = Attending(apart if masked else None)
    expected = _sum(model, "loop")
    assert float((_sum(model, "fused") - expected).norm() / expected.norm()) < 1e-12


def test_dropout_does_not_make_the_trial_fail() -> None:
    torch.manual_seed(0)
    assert bool(torch.isfinite(_sum(Attending(drop=0.3), "fused")).all())


def test_a_monai_that_treats_its_table_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WindowAttention.forward

    def scaled(self: WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
        kept = self.relative_position_bias_table
        del self.relative_position_bias_table
        self.relative_position_bias_table = 2 * kept  # type: ignore[assignment]
        try:
            return whole(self, x, mask)
        finally:
            del self.relative_position_bias_table
            self.relative_position_bias_table = kept

    monkeypatch.setattr(WindowAttention, "forward", scaled)
    torch.manual_seed(0)
    model = Attending()
    model.head = nn.Linear(8, 3)  # a network that was not tried before
    with pytest.raises(Unsupported, match="otherwise than expected"):
        _sum(model, "fused")


def test_a_subclass_is_not_taken_for_it() -> None:
    torch.manual_seed(0)
    model = Attending()
    model.attention.__class__ = Scaled
    with pytest.raises(Unsupported, match="Scaled"):
        _sum(model, "fused")
