"""Inversion by search: an image whose gradient points where the hospital's update points.

For networks that do not start with a dense layer. Minimise 1 - cos(gradient of the guess, what was sent) plus a little
total variation, with signed Adam steps, from some random starts; the start with the least objective wins
(Geiping, Bauermeister, Droege and Moeller 2020, "Inverting Gradients"). The attacker knows network, weights and labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedimaging.privacy.clipping import Losses


@dataclass(frozen=True)
class Search:
    """How hard the attacker tries. Many starts end in the wrong place, so one that ends with an objective of at most
    `good_enough` is the last. `total_variation`: weight of the prior that images are smooth."""

    steps: int = 400
    restarts: int = 8
    good_enough: float = 1e-3
    learning_rate: float = 0.1
    total_variation: float = 1e-3
    seed: int = 0


def search_image(
    model: nn.Module, losses: Losses, sent: list[Tensor], y: Tensor, shape: tuple[int, ...], search: Search
) -> Tensor:
    """The guess (B, C, *spatial) in [0, 1] for the images behind `sent`, the gradient of their mean loss (one tensor a
    trainable parameter; any positive multiple of it gives the same answer). y (B, ...): their labels."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    best, least = torch.full(shape, 0.5), float("inf")
    for restart in range(search.restarts):
        generator = torch.Generator().manual_seed(search.seed * 1000 + restart)
        guess = torch.rand(shape, generator=generator).to(sent[0].device).requires_grad_(True)
        optimizer = torch.optim.Adam([guess], lr=search.learning_rate)
        milestones = [search.steps * part // 8 for part in (3, 5, 7)]
        for step in range(search.steps):
            optimizer.zero_grad()
            value = _objective(model, losses, parameters, sent, guess, y, search.total_variation)
            (guess.grad,) = torch.autograd.grad(value, [guess])
            guess.grad.sign_()
            if step in milestones:
                optimizer.param_groups[0]["lr"] *= 0.1
            optimizer.step()
            with torch.no_grad():
                guess.clamp_(0, 1)
        end = float(_objective(model, losses, parameters, sent, guess, y, search.total_variation).detach())
        if end < least:
            best, least = guess.detach().clone(), end
        if least <= search.good_enough:
            break
    return best


def _objective(
    model: nn.Module, losses: Losses, parameters: list[nn.Parameter], sent: list[Tensor], guess: Tensor, y: Tensor, weight: float
) -> Tensor:
    gradients = torch.autograd.grad(losses(model(guess), y).mean(), parameters, create_graph=True)
    dot = torch.stack([(one * other).sum() for one, other in zip(gradients, sent, strict=True)]).sum()
    mine = torch.stack([one.square().sum() for one in gradients]).sum().clamp(min=1e-30).sqrt()
    theirs = torch.stack([other.square().sum() for other in sent]).sum().clamp(min=1e-30).sqrt()
    return 1 - dot / (mine * theirs) + weight * total_variation(guess)


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbours along each spatial axis of (B, C, *spatial), added up."""
    return torch.stack([x.diff(dim=axis).abs().mean() for axis in range(2, x.ndim)]).sum()
