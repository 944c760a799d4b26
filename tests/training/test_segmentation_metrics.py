import numpy as np
import pytest
import torch

from fedimaging.training.segmentation_metrics import (
    SEGMENTATION_METRICS,
    quick_dice,
    scan_segmentation_metrics,
    segmentation_intervals,
)


def square(left: int, side: int = 4, size: int = 12, label: int = 1) -> torch.Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, 4 : 4 + side, left : left + side] = label
    return mask


def measure(found: torch.Tensor, there: torch.Tensor, classes: int = 2, **other: object) -> dict[str, np.ndarray]:
    options = {"spacing_mm": (1.0,) * (there.dim() - 1), "tolerance_mm": 1.0, **other}
    return scan_segmentation_metrics(found, there, classes=classes, **options)  # type: ignore[arg-type]


def test_a_perfect_mask() -> None:
    found = measure(square(2), square(2))
    assert tuple(found) == SEGMENTATION_METRICS
    assert {k: v.tolist() for k, v in found.items()} == {"dice": [[1.0]], "surface_dice": [[1.0]], "hd95_mm": [[0.0]]}


@pytest.mark.parametrize(("spacing", "near", "far"), [((1.0, 1.0), 1.0, 2.0), ((1.0, 3.0), None, 6.0)])
def test_a_shift_of_two_pixels_is_measured_in_mm(spacing: tuple, near: float | None, far: float) -> None:
    found = measure(square(4), square(2), spacing_mm=spacing, tolerance_mm=2.0)
    assert found["dice"].item() == 0.5
    assert found["hd95_mm"].item() == pytest.approx(far)
    assert (found["surface_dice"].item() == 1) is (near == 1.0)


def test_three_dimensions_and_classes_apart() -> None:
    there = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    there[:, 1:4, 1:4, 1:4], there[:, 5:7, 5:7, 5:7] = 1, 2
    moved = there.roll(1, dims=1)
    found = measure(moved, there, classes=3, spacing_mm=(2.0, 1.0, 1.0), tolerance_mm=0.5)
    np.testing.assert_allclose(found["dice"], [[2 / 3, 1 / 2]])
    np.testing.assert_allclose(found["hd95_mm"], [[2.0, 2.0]])


def test_a_class_missed_or_invented_counts_worst_and_one_nowhere_counts_not() -> None:
    there = torch.cat([square(2), torch.zeros(1, 12, 12, dtype=torch.uint8), square(2)])
    found = measure(torch.cat([torch.zeros_like(there[:1]), square(2), square(2)]), there, classes=3)
    diagonal = 12 * 2**0.5
    np.testing.assert_array_equal(found["dice"], [[0, np.nan], [0, np.nan], [1, np.nan]])
    np.testing.assert_array_equal(found["surface_dice"], [[0, np.nan], [0, np.nan], [1, np.nan]])
    np.testing.assert_allclose(found["hd95_mm"], [[diagonal, np.nan], [diagonal, np.nan], [0, np.nan]])


def test_quick_dice_is_the_same_number() -> None:
    generator = torch.Generator().manual_seed(0)
    found, there = torch.randint(0, 3, (2, 4, 6, 6), generator=generator)
    np.testing.assert_array_equal(quick_dice(found, there, 3), measure(found, there, classes=3)["dice"])


def test_intervals_over_patients_skip_what_is_not_defined() -> None:
    arrays = {"dice": np.array([[1.0, 0.5], [0.5, np.nan], [np.nan, np.nan], [0.0, 0.5]])}
    found = segmentation_intervals(arrays, np.array(["a", "a", "b", "c"]), resamples=200)
    assert list(found) == ["dice", "dice_1", "dice_2"]
    assert found["dice"].value == pytest.approx((0.75 + 0.5 + 0.25) / 3)
    assert found["dice_1"].value == pytest.approx(0.5)
    assert all(v.n_patients == 3 for v in found.values())
    assert found["dice"].low <= found["dice"].value <= found["dice"].high


def test_one_foreground_class_gives_one_row() -> None:
    found = segmentation_intervals({"hd95_mm": np.array([[1.0], [3.0]])}, np.array(["a", "b"]), resamples=50)
    assert list(found) == ["hd95_mm"]
    assert found["hd95_mm"].value == 2
