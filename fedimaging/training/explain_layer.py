"""Which layers of a classifier Grad-CAM looks at."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

FEWEST_CELLS = 3
"""Along a side; what is coarser says nothing about where."""


@dataclass(frozen=True)
class Target:
    """`name` of a module in `network.named_modules()`; `spatial`: its output, or the gradient there, as (B, C, *grid)."""

    name: str
    grid: tuple[int, ...]
    spatial: Callable[[Tensor], Tensor]


def target_layers(network: nn.Module, x: Tensor) -> list[Target]:
    """The layers for a scan x (1, C, *spatial), the finest first; none where no layer gives a map.

    Of every resolution the last layer that has it, down to `FEWEST_CELLS` along each side: the coarse ones know what, the fine
    ones where. In a vision transformer the patch tokens that enter its last block: after it only the class token is read.
    """
    return _tokens(network, x) or _feature_maps(network, x)


def _feature_maps(network: nn.Module, x: Tensor) -> list[Target]:
    last = {grid: name for name, grid in _grids(network, x) if grid and min(grid) >= FEWEST_CELLS}
    return [Target(last[grid], grid, lambda output: output) for grid in sorted(last, key=prod, reverse=True)]


def _grids(network: nn.Module, x: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Modules in the order in which they finished, with the spatial size of what they gave; empty where that is no map."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            is_map = isinstance(output, Tensor) and output.ndim == x.ndim
            found.append((name, tuple(output.shape[2:]) if is_map else ()))  # type: ignore[attr-defined]
        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(name for name, _ in found)
    return [one for one in found if calls[one[0]] == 1]  # one used twice would give the map of one use, the gradient of the other


def _tokens(network: nn.Module, x: Tensor) -> list[Target]:
    from monai.networks.nets import ViT

    if not isinstance(network, ViT):
        return []
    grid = tuple(network.patch_embedding.patch_embeddings(x).shape[2:])

    def spatial(tokens_BTC: Tensor) -> Tensor:
        patches = tokens_BTC[:, -prod(grid):]  # without the class token, which stands first
        return patches.transpose(1, 2).reshape(len(patches), -1, *grid)

    return [Target(f"blocks.{len(network.blocks) - 1}.norm1", grid, spatial)]
