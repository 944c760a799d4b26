"""No cell below the minimum, by patients and not by images; what is hidden is not the only thing hidden."""

import numpy as np

from fedimaging.release.cells import Counting, histogram, shown_groups


def test_cells_are_joined_until_each_holds_enough_patients() -> None:
    values = np.array([0.05] * 4 + [0.15] * 3 + [0.55] * 3 + [0.95])
    patients = np.arange(len(values))
    edges = np.linspace(0, 1, 11)
    assert histogram(values, patients, edges, 3) == {"edges": [0.0, 0.1, 0.2, 1.0], "shares": [0.36, 0.27, 0.36]}
    assert histogram(values, patients, edges, 11) == {"edges": [0.0, 1.0], "shares": [1.0]}
    assert histogram(values, patients, edges, 12) is None


def test_many_images_of_one_patient_are_one_patient() -> None:
    values, patients = np.array([0.1] * 50 + [0.9] * 3), np.array([0] * 50 + [1, 2, 3])
    assert histogram(values, patients, np.linspace(0, 1, 3), 2) == {"edges": [0.0, 1.0], "shares": [1.0]}


def test_values_beyond_the_edges_are_counted_at_the_ends() -> None:
    found = histogram(np.array([-5.0, -5.0, 7.0, 7.0]), np.arange(4), np.linspace(0, 1, 3), 2)
    assert found == {"edges": [0.0, 0.5, 1.0], "shares": [0.5, 0.5]}


def test_counts_are_exact_unless_some_cell_is_hidden() -> None:
    fine, coarse = Counting.over(10, [12, 57, 0]), Counting.over(10, [12, 57, 3])
    assert (fine.number(57), fine.words(57), fine.number(3)) == (57, "57", None)
    assert (coarse.number(57), coarse.words(57), coarse.words(3)) == (50, "at least 50", "fewer than 10")
    assert (fine.words(0), fine.words(None)) == ("none", "unknown")


def test_a_group_is_hidden_with_another_that_could_be_found_by_subtraction() -> None:
    def column(**sizes: int) -> np.ndarray:
        return np.array([name for name, size in sizes.items() for _ in range(size)])

    few = column(F=12, M=20, X=3)
    assert shown_groups(few, np.arange(len(few)), (), 10) == ["M"]
    enough = column(F=12, M=20, X=11)
    assert shown_groups(enough, np.arange(len(enough)), (), 10) == ["F", "M", "X"]
    unstated = column(F=12, M=20, none=15)
    assert shown_groups(unstated, np.arange(len(unstated)), ("none",), 10) == ["F", "M"]
