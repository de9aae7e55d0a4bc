"""Masks of polygons and their run lengths, against plain computations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caft.masks import decode_rle, encode_rle, polygons_to_mask


def inside(x, y, points):
    """Even-odd rule of one point, edge by edge."""
    odd = False
    for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
        if (y1 > y) != (y2 > y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) <= x:
            odd = not odd
    return odd


@given(st.integers(0, 2**32), st.integers(3, 9), st.integers(1, 3))
def test_a_mask_holds_the_pixels_whose_centre_lies_in_a_polygon(seed, corners, count):
    rng = np.random.default_rng(seed)
    polygons = rng.uniform(-5, 25, (count, corners, 2))  # some lie partly outside
    expected = [
        [any(inside(x + 0.5, y + 0.5, polygon.tolist()) for polygon in polygons) for x in range(20)]
        for y in range(16)
    ]
    found = polygons_to_mask([polygon.ravel().tolist() for polygon in polygons], 16, 20)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(decode_rle(encode_rle(found)), found)


def test_areas_of_large_polygons_are_right():
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([60 + 50 * np.cos(turn), 55 + 50 * np.sin(turn)], axis=1)
    area = polygons_to_mask([circle.ravel().tolist()], 110, 120).sum()
    assert area == pytest.approx(np.pi * 50**2, rel=0.002)
    assert polygons_to_mask([], 4, 5).sum() == 0


def test_a_polygon_of_odd_length_is_refused():
    with pytest.raises(ValueError, match="reshape"):
        polygons_to_mask([[1.0, 2.0, 3.0]], 4, 4)
