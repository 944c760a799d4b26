import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.audits.inversion_search import Search, search_image, total_variation


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, y, reduction="none")


def test_the_search_finds_an_image_without_noise_and_not_under_noise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 64, 2))
    x, y = torch.zeros(1, 1, 8, 8), torch.tensor([1])
    x[:, :, 2:6, 3:7] = 1.0
    true = list(torch.autograd.grad(losses(model(x), y).mean(), list(model.parameters())))
    generator = torch.Generator().manual_seed(1)
    noisy = [part + torch.randn(part.shape, generator=generator) for part in true]
    found, blind = (search_image(model, losses, sent, y, (1, 1, 8, 8), Search(300, 1)) for sent in (true, noisy))
    assert np.corrcoef(found.flatten(), x.flatten())[0, 1] > 0.95
    assert abs(np.corrcoef(blind.flatten(), x.flatten())[0, 1]) < 0.5


def test_total_variation_of_one_step() -> None:
    x = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert float(total_variation(x)) == 1.0


def test_a_start_that_is_good_enough_is_the_last() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    x, y = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([0])
    sent = list(torch.autograd.grad(losses(model(x), y).mean(), list(model.parameters())))
    one, easily, hardly = (
        search_image(model, losses, sent, y, (1, 1, 4, 4), Search(steps=2, restarts=restarts, good_enough=enough, seed=3))
        for restarts, enough in ((1, 0.0), (6, 2.0), (6, 0.0))
    )
    assert torch.equal(one, easily)
    assert not torch.equal(one, hardly)
