"""mIoU in closed form; test_parity.py has mmseg's word on it."""

import math

import numpy as np
import pytest

from lewel_bench.evals.segmentation import metric


def test_two_classes_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 255, 1, 255]], np.uint8)
    given = np.array([[0, 1, 1, 1], [0, 1, 0, 0]], np.uint8)
    counts = metric.confusion(given, truth, 3)
    assert counts.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    result = metric.scores(counts, ("a", "b", "c"))
    assert result["per_class"] == {"a": pytest.approx(50), "b": pytest.approx(50), "c": None}
    assert result["miou"] == pytest.approx(50)  # the absent class does not count
    assert result["pixel_acc"] == result["class_acc"] == pytest.approx(200 / 3)


def test_perfect_wrong_and_empty() -> None:
    truth = np.array([[0, 1, 2]], np.uint8)
    names = ("a", "b", "c")
    assert metric.scores(metric.confusion(truth, truth, 3), names)["miou"] == 100
    wrong = np.array([[1, 2, 0]], np.uint8)
    assert metric.scores(metric.confusion(wrong, truth, 3), names)["miou"] == 0
    void = np.full((1, 3), 255, np.uint8)
    result = metric.scores(metric.confusion(truth, void, 3), names)
    assert math.isnan(result["miou"]) and set(result["per_class"].values()) == {None}


def test_a_class_that_is_only_predicted_counts_with_0() -> None:
    truth, given = np.zeros((1, 4), np.uint8), np.array([[0, 0, 0, 1]], np.uint8)
    assert metric.scores(metric.confusion(given, truth, 2), ("a", "b"))["miou"] == 37.5
