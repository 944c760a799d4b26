import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.audits.gradients import clipped_rows, unit_gradients, unit_runs
from fedimaging.privacy.clipping import clipped_sum


def test_clipped_rows_of_unit_gradients_add_up_to_the_oracles_sum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2))
    x, y, counts = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 0, 1, 1]), np.array([2, 1, 2])

    def losses(outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, y, reduction="none")

    rows = clipped_rows(unit_gradients(model, losses, x, y, counts), 0.3)
    oracle = clipped_sum(model, losses, x, y, torch.tensor([0, 0, 1, 2, 2]), 3, 0.3)
    torch.testing.assert_close(rows.sum(0), torch.cat([part.flatten() for part in oracle.sum]), atol=1e-6, rtol=1e-5)
    assert float(rows.norm(dim=1).max()) <= 0.3 * (1 + 1e-5)


def test_runs_never_split_a_unit() -> None:
    counts = np.array([1, 3, 1, 2])
    assert list(unit_runs(counts, 1 << 23)) == [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)]
    assert list(unit_runs(counts, 10)) == [slice(0, 4)]
    assert list(unit_runs(counts[:0], 10)) == []
