"""Lesions counted in pictures drawn by hand."""

import numpy as np

from fedimaging.training.lesions import scan_lesions


def test_lesions_found_missed_and_false_in_a_picture() -> None:
    truth, predicted = np.zeros((1, 12, 12), int), np.zeros((1, 12, 12), int)
    truth[0, 1:3, 1:3] = 1  # found, by one pixel
    truth[0, 8, 8] = truth[0, 9, 9] = 1  # one lesion: its pixels touch at a corner; missed
    predicted[0, 2, 2:5] = 1
    predicted[0, 6, 1] = 1  # false
    predicted[0, 0, 11] = 1  # false
    found = {name: array.tolist() for name, array in scan_lesions(predicted, truth, 2).items()}
    assert found == {
        "lesions": [[2.0]], "lesions_found": [[1.0]], "false_lesions": [[2.0]], "size_true": [[6.0]], "size_predicted": [[5.0]],
    }


def test_classes_are_counted_apart_and_one_prediction_may_find_two_lesions() -> None:
    truth, predicted = np.zeros((1, 5, 5, 5), int), np.zeros((1, 5, 5, 5), int)
    truth[0, 0, 0, 0] = truth[0, 0, 0, 4] = 2
    truth[0, 4, 4, 4] = 1
    predicted[0, 0, 0, :] = 2  # one part over both
    predicted[0, 4, 4, 4] = 2  # of another class: no lesion of class 1 is found, and class 2 has a false part
    found = scan_lesions(predicted, truth, 3)
    assert found["lesions"].tolist() == [[1.0, 2.0]]
    assert found["lesions_found"].tolist() == [[0.0, 2.0]]
    assert found["false_lesions"].tolist() == [[0.0, 1.0]]


def test_an_empty_scan_has_none() -> None:
    assert not any(array.any() for array in scan_lesions(np.zeros((2, 4, 4), int), np.zeros((2, 4, 4), int), 2).values())
