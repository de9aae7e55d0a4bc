"""Overlaps of masks against sets of pixels, and the one rule that makes a mask of a map."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caft.metrics import binarise, centre_box, mask_iou, mask_overlap, overlap_scores, peak_overlap

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)
PAIRS = SHAPES.flatmap(lambda s: st.tuples(hnp.arrays(bool, s), hnp.arrays(bool, s)))


@settings(deadline=None)
@given(PAIRS)
def test_overlap_counts_pixels(pair):
    a, b = (set(zip(*np.nonzero(mask), strict=True)) for mask in pair)
    assert mask_overlap(*pair) == (len(a & b), len(a | b))
    assert mask_iou(*pair) == pytest.approx(len(a & b) / max(1, len(a | b)))


def test_iou_of_a_stack_is_one_value_per_mask():
    mask = np.array([[True, True], [False, False]])
    predicted = np.stack([mask, ~mask, np.ones((2, 2), bool), np.zeros((2, 2), bool)])
    np.testing.assert_allclose(mask_iou(predicted, mask), [1, 0, 0.5, 0])


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=16)),
    st.sampled_from([0.5, 2.0, 8.0]),
    st.sampled_from([-4.0, 0.0, 1.0]),
)
def test_the_mask_does_not_depend_on_the_scale_of_the_map(heat, scale, offset):
    # half-precision values, powers of two: no rounding moves a value across the midpoint
    heat = heat.astype(np.float64)
    np.testing.assert_array_equal(binarise(heat), binarise(scale * heat + offset))


def test_the_threshold_is_the_midpoint_of_each_map():
    heat = np.array([[[0.0, 0.4, 0.6, 1.0]], [[2.0, 2.1, 2.2, 2.3]]])
    np.testing.assert_array_equal(
        binarise(heat), [[[False, False, True, True]], [[False, False, True, True]]]
    )


@pytest.mark.parametrize("value", [0.0, 0.3, np.nan])
def test_a_map_that_points_nowhere_is_an_empty_mask(value):
    heat = np.full((3, 3), value)
    assert not binarise(heat).any()
    heat[0, 0] = np.nan
    assert not binarise(heat).any()


def test_mean_and_overall_iou():
    scores = overlap_scores(np.array([1, 90]), np.array([10, 100]))
    assert scores == {
        "miou": pytest.approx(0.5),
        "oiou": pytest.approx(91 / 110),
        "precision_50": 0.5,
    }
    assert set(overlap_scores(np.zeros(1), np.zeros(1)).values()) == {0.0}


def test_a_peak_hits_by_the_share_of_its_pixels_inside():
    heat = np.array([[0.0, 2.0, 2.0], [1.0, 2.0, 2.0]])
    mask = np.array([[True, True, True], [True, False, False]])
    assert peak_overlap(heat, mask) == (2, 4)
    assert peak_overlap(np.zeros((2, 3)), mask) == (4, 6)  # a map that points nowhere: chance
    assert peak_overlap(np.full((2, 3), np.nan), mask) == (0, 0)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (240, 320), (5, 7), (1, 1)])
def test_the_centre_box_is_about_a_quarter_and_in_the_middle(height, width):
    box = centre_box(height, width)
    np.testing.assert_array_equal(box, box[::-1, ::-1])
    assert box.any()
    if height >= 96:
        assert box.mean() == pytest.approx(0.25)
