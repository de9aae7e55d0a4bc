"""Superpixel measures on maps whose values can be counted by hand, and their limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caft.metrics import (
    achievable_segmentation_accuracy,
    boundary_recall,
    undersegmentation_error,
)

TRUTH = np.zeros((4, 8), int)
TRUTH[:, 4:] = 1
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)
MAPS = SHAPES.flatmap(
    lambda s: st.tuples(*[hnp.arrays(np.int64, s, elements=st.integers(0, 5)) for _ in range(2)])
)


def halves(column: int) -> np.ndarray:
    labels = np.zeros((4, 8), int)
    labels[:, column:] = 7
    return labels


@pytest.mark.parametrize(
    ("column", "recall", "error", "accuracy"),
    [(4, 1, 0, 1), (5, 1, 8 / 32, 28 / 32), (6, 0, 16 / 32, 24 / 32)],
)
def test_two_halves_cut_off_the_true_place(column, recall, error, accuracy):
    labels = halves(column)
    assert boundary_recall(labels, TRUTH) == recall
    assert undersegmentation_error(labels, TRUTH) == pytest.approx(error)
    assert achievable_segmentation_accuracy(labels, TRUTH) == pytest.approx(accuracy)


def test_tolerance_is_in_pixels():
    assert boundary_recall(halves(6), TRUTH, tolerance_px=2) == 1
    assert boundary_recall(halves(5), TRUTH, tolerance_px=0) == 0
    assert np.isnan(boundary_recall(halves(4), np.zeros((4, 8), int)))


@given(MAPS)
def test_the_truth_itself_is_perfect_and_one_superpixel_is_the_worst(maps):
    labels, truth = maps
    assert undersegmentation_error(truth, truth) == 0
    assert achievable_segmentation_accuracy(truth, truth) == 1
    whole = achievable_segmentation_accuracy(np.zeros_like(truth), truth)
    assert whole <= achievable_segmentation_accuracy(labels, truth) <= 1
    assert undersegmentation_error(labels, truth) >= 0


@given(MAPS)
def test_names_of_labels_do_not_matter(maps):
    labels, truth = maps
    renamed = 1000 - 7 * labels
    for measure in (undersegmentation_error, achievable_segmentation_accuracy, boundary_recall):
        np.testing.assert_equal(measure(renamed, truth), measure(labels, truth))
