"""Each change does what it says, to scan and mask alike, and each scan is changed by itself."""

import pytest
import torch

from fedimaging.data.augment import AugmentSpec, augment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(*size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scans whose pixels above 0.5 are their mask."""
    x = torch.zeros(8, 1, *size)
    centre = tuple(slice(n // 4, n // 2) for n in size)
    x[(slice(None), 0, *centre)] = 1
    return x, (x[:, 0] > 0.5).to(torch.uint8)


ALL = AugmentSpec(flip=True, shift=0.1, rotate_degrees=20, scale=0.1, intensity=0.2)


def test_nothing_asked_changes_nothing() -> None:
    x, masks = blob(8, 8)
    assert augment(x, masks, AugmentSpec(), seeded()) == (x, masks)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (8, 10, 12)])
def test_shapes_and_types_are_kept(size: tuple[int, ...]) -> None:
    x, masks = blob(*size)
    new, new_masks = augment(x, masks, ALL, seeded())
    assert new_masks is not None
    assert new.shape == x.shape
    assert new.dtype == torch.float32
    assert new_masks.shape == masks.shape
    assert new_masks.dtype == torch.uint8
    assert not torch.equal(new, x)
    assert torch.isfinite(new).all()


def test_the_generator_decides() -> None:
    x, masks = blob(16, 16)
    first, again, other = (augment(x, masks, ALL, seeded(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_given_tensors_are_left_alone() -> None:
    x, masks = blob(16, 16)
    before = x.clone()
    augment(x, masks, ALL, seeded())
    assert torch.equal(x, before)


def test_a_scan_is_changed_by_itself() -> None:
    x, _ = blob(16, 16)
    other = x.clone()
    other[1:] = torch.rand(7, 1, 16, 16)
    assert torch.equal(augment(x, None, ALL, seeded())[0][0], augment(other, None, ALL, seeded())[0][0])


def test_flip_mirrors_left_and_right_in_half_of_the_scans() -> None:
    x = torch.rand(64, 1, 5, 7)
    new, _ = augment(x, None, AugmentSpec(flip=True), seeded())
    same = torch.isclose(new, x, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(new, x.flip(3), atol=1e-5).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 20 < same.sum() < 44
    x = torch.rand(16, 1, 5, 6, 7)
    new, _ = augment(x, None, AugmentSpec(flip=True), seeded())
    same = torch.isclose(new, x, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(new, x.flip(2), atol=1e-5).flatten(1).all(1)  # the first axis of RAS
    assert (same ^ mirrored).all()
    assert mirrored.any()


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (16, 20, 24)])
def test_mask_and_scan_move_together(size: tuple[int, ...]) -> None:
    x, masks = blob(*size)
    new, new_masks = augment(x, masks, ALL.model_copy(update={"intensity": 0.0}), seeded(4))
    assert new_masks is not None
    agree = ((new[:, 0] > 0.5) == (new_masks > 0)).float().mean()
    assert agree > 0.97
    assert (new_masks.flatten(1).sum(1) > 0).all()


def test_rotation_keeps_lengths_where_pixels_are_square() -> None:
    x = torch.zeros(16, 1, 20, 60)
    x[:, :, 7:13, 27:33] = 1  # a square in the middle of a wide picture keeps its area
    new, _ = augment(x, None, AugmentSpec(rotate_degrees=90), seeded())
    torch.testing.assert_close(new.sum((1, 2, 3)), torch.full((16,), 36.0), rtol=0.05, atol=0.0)


def test_shift_moves_up_to_its_fraction() -> None:
    x = torch.zeros(200, 1, 40, 40)
    x[:, :, 20, 20] = 1
    new, _ = augment(x, None, AugmentSpec(shift=0.1), seeded())
    rows = (new[:, 0] * torch.arange(40)[:, None]).sum((1, 2)) / new.sum((1, 2, 3))
    assert ((rows - 20).abs() <= 4.01).all()
    assert (rows - 20).abs().max() > 3


def test_intensity_is_relative_to_the_scan() -> None:
    x = torch.rand(32, 1, 8, 8)
    new, _ = augment(x, None, AugmentSpec(intensity=0.2), seeded())
    ratio = new.std((1, 2, 3)) / x.std((1, 2, 3))
    assert ((ratio >= 0.8) & (ratio <= 1.2)).all()
    scaled, _ = augment(100 * x, None, AugmentSpec(intensity=0.2), seeded())
    torch.testing.assert_close(scaled, 100 * new, rtol=1e-4, atol=1e-3)


def test_classes_of_masks_are_kept() -> None:
    masks = torch.randint(0, 3, (4, 9, 9))
    _, new = augment(torch.rand(4, 1, 9, 9), masks, ALL, seeded())
    assert new is not None
    assert new.dtype == torch.int64
    assert set(new.unique().tolist()) <= {0, 1, 2}


def test_an_empty_batch_is_given_back() -> None:
    x, masks = torch.zeros(0, 1, 8, 8), torch.zeros(0, 8, 8)
    assert augment(x, masks, ALL, seeded())[0].shape == (0, 1, 8, 8)
