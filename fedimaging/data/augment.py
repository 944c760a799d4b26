"""Random changes of a batch, drawn for each scan by itself: no scan's change depends on what else is in the batch.

Shape legend: B scans, C channels, then 2 (rows, columns) or 3 (RAS) spatial axes, written S.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fedimaging.data.spec import AugmentSpec

__all__ = ["AugmentSpec", "augment"]


def augment(
    x_BCS: Tensor, masks_BS: Tensor | None, spec: AugmentSpec, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Changed copies of the scans, float, and of their masks, of their own type.

    Scan and mask are moved alike: scans bilinear with the edge repeated beyond the border, masks nearest with 0 beyond.
    Left and right are the last axis of a picture and the first of a volume. All randomness comes from `generator`, the
    same number of draws for each scan, whatever the spec leaves out. An empty batch, or a spec of zeros, is given back.
    """
    if not len(x_BCS) or spec == AugmentSpec():
        return x_BCS, masks_BS
    dims = x_BCS.ndim - 2
    draws = torch.rand(len(x_BCS), dims + 7, generator=generator, device=generator.device).to(x_BCS)
    draws = 2 * draws - 1
    if spec.flip or spec.shift or spec.rotate_degrees or spec.scale:
        theta = _moves(draws, x_BCS.shape[2:], spec)
        x_BCS, masks_BS = _moved(x_BCS, masks_BS, theta)
    if spec.intensity:
        x_BCS = _relit(x_BCS, draws[:, -2], draws[:, -1], spec.intensity)
    return x_BCS, masks_BS


def _moves(draws: Tensor, size: torch.Size, spec: AugmentSpec) -> Tensor:
    """(B, dims, dims + 1) affine maps from a place in the new scan to one in the old, as `affine_grid` takes them.

    It counts axes from the last (x) to the first, each from -1 to 1, so rotations are made in voxels and scaled back.
    """
    dims = len(size)
    turn = torch.eye(dims).to(draws).repeat(len(draws), 1, 1)
    for number, (a, b) in enumerate([(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]):
        turn = turn @ _rotation(draws[:, number] * spec.rotate_degrees, a, b, dims)
    turn = turn * (1 + spec.scale * draws[:, 3])[:, None, None]
    side = 0 if dims == 2 else 2
    mirrored = (draws[:, 4] < 0) & spec.flip
    turn[:, :, side] = torch.where(mirrored[:, None], -turn[:, :, side], turn[:, :, side])
    extent = torch.tensor(size[::-1], dtype=draws.dtype, device=draws.device)
    linear = turn * extent[None, None, :] / extent[None, :, None]
    shift = 2 * spec.shift * draws[:, 5 : 5 + dims]
    return torch.cat([linear, shift[:, :, None]], dim=2)


def _rotation(degrees: Tensor, a: int, b: int, dims: int) -> Tensor:
    angle = torch.deg2rad(degrees)
    rotation = torch.eye(dims).to(degrees).repeat(len(degrees), 1, 1)
    rotation[:, a, a] = rotation[:, b, b] = torch.cos(angle)
    rotation[:, a, b], rotation[:, b, a] = -torch.sin(angle), torch.sin(angle)
    return rotation


def _moved(x_BCS: Tensor, masks_BS: Tensor | None, theta: Tensor) -> tuple[Tensor, Tensor | None]:
    grid = functional.affine_grid(theta, list(x_BCS.shape), align_corners=False)
    moved = functional.grid_sample(x_BCS, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if masks_BS is None:
        return moved, None
    labels = functional.grid_sample(
        masks_BS[:, None].to(grid.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return moved, labels[:, 0].to(masks_BS.dtype)


def _relit(x_BCS: Tensor, gain: Tensor, offset: Tensor, strength: float) -> Tensor:
    """Contrast about the scan's own mean, and brightness in its own standard deviations."""
    axes = tuple(range(1, x_BCS.ndim))
    mean = x_BCS.mean(axes, keepdim=True)
    spread = x_BCS.std(axes, keepdim=True, unbiased=False)
    per_scan = (-1,) + (1,) * (x_BCS.ndim - 1)
    return mean + (x_BCS - mean) * (1 + strength * gain.view(per_scan)) + strength * offset.view(per_scan) * spread
