"""The MedMNIST layout, from small files and from the real one."""

from pathlib import Path

import numpy as np
import pytest

from fedimaging.data.medmnist import find_file, read_images, read_labels
from fedimaging.errors import DataError


def layout(path: Path, **arrays: np.ndarray) -> Path:
    parts = {"train": 3, "val": 1, "test": 2}
    made = {f"{part}_images": np.full((n, 4, 4), n, np.uint8) for part, n in parts.items()}
    made |= {f"{part}_labels": np.arange(n, dtype=np.uint8)[:, None] for part, n in parts.items()}
    np.savez(path, **made | arrays)  # type: ignore[arg-type]
    return path


def test_table_and_pixels_are_in_one_order(tmp_path: Path) -> None:
    file = layout(tmp_path / "x.npz")
    table = read_labels(file)
    assert table.labels[:, 0].tolist() == [0, 1, 2, 0, 0, 1]
    assert table.split.tolist() == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert len(set(table.patient_ids)) == 6
    assert [int(image[0, 0, 0]) for image in read_images(file)] == [3, 3, 3, 1, 2, 2]


def test_colours_and_volumes(tmp_path: Path) -> None:
    rgb = {f"{part}_images": np.zeros((n, 4, 4, 3), np.uint8) for part, n in (("train", 3), ("val", 1), ("test", 2))}
    assert next(read_images(layout(tmp_path / "rgb.npz", **rgb))).shape == (3, 4, 4)
    solid = {name: np.zeros((len(images), 5, 5, 5), np.uint8) for name, images in rgb.items()}
    assert next(read_images(layout(tmp_path / "solid.npz", **solid))).shape == (1, 5, 5, 5)


def test_a_data_folder_and_its_sizes(tmp_path: Path) -> None:
    small, large = layout(tmp_path / "xmnist.npz"), layout(tmp_path / "xmnist_64.npz")
    assert find_file(tmp_path, "xmnist", (28, 28)) == small
    assert find_file(tmp_path, "xmnist", (64, 64)) == large
    assert find_file(tmp_path, "xmnist_64.npz", (28, 28)) == large
    with pytest.raises(DataError, match=r"has xmnist\.npz, xmnist_64\.npz"):
        find_file(tmp_path, ".", (28, 28))
    large.unlink()
    assert find_file(tmp_path, ".", (28, 28)) == small
    with pytest.raises(DataError, match=r"has xmnist\.npz"):
        find_file(tmp_path, "ymnist.npz", (28, 28))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"train_images": np.zeros((2, 4, 4), np.uint8)}, "2 scans but train_labels 3"),
        ({"train_images": np.zeros(3)}, "no stack of scans"),
        (
            {"test_images": np.array([np.zeros((4, 4)), np.full((4, 4), np.nan)])},
            r"test_images\[1\] has pixels that are NaN",
        ),
        ({"train_labels": np.array([[0.5], [1], [1]])}, "not whole numbers"),
        ({"train_labels": np.array(["a", "b", "c"])}, "not whole numbers"),
    ],
)
def test_wrong_arrays_are_told(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    file = layout(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=told):
        _read_all(file)


def _read_all(file: Path) -> None:
    read_labels(file)
    list(read_images(file))


def test_files_of_another_layout_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(DataError, match="no labels under train_labels"):
        read_labels(tmp_path / "other.npz")
    np.savez(tmp_path / "half.npz", train_labels=np.zeros((2, 1), np.uint8))
    with pytest.raises(DataError, match="train_images"):
        list(read_images(tmp_path / "half.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        read_labels(tmp_path / "text.npz")


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    file = layout(tmp_path / "x.npz", train_labels=np.array([{"a": 1}, None, 3], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        read_labels(file)


def test_the_real_file(shared_data: Path) -> None:
    table = read_labels(shared_data / "pneumoniamnist.npz")
    assert np.bincount(table.labels[table.split == "train", 0]).tolist() == [1214, 3494]
    assert np.bincount(table.labels[table.split == "test", 0]).tolist() == [234, 390]
