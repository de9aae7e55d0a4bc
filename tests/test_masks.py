"""Masks of polygons and their run lengths, against pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from caft.errors import DataError
from caft.masks import decode_rle, encode_rle, polygons_to_mask


@given(st.integers(0, 2**32), st.integers(3, 9), st.integers(1, 3))
def test_a_mask_is_the_one_that_pycocotools_makes(seed, corners, count):
    rng = np.random.default_rng(seed)
    polygons = rng.uniform(-5, 25, (count, 2 * corners)).tolist()  # some lie partly outside
    compressed = coco.merge(coco.frPyObjects(polygons, 16, 20))
    expected = coco.decode(compressed).astype(bool)
    found = polygons_to_mask(polygons, 16, 20)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(decode_rle(encode_rle(found)), found)
    np.testing.assert_array_equal(decode_rle(compressed), expected)
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(text), expected)


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 300))
def test_compressed_counts_of_any_mask_are_read(seed, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < seed % 7 / 6
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(decode_rle(compressed), mask)


def test_areas_of_large_polygons_are_right():
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([60 + 50 * np.cos(turn), 55 + 50 * np.sin(turn)], axis=1)
    area = polygons_to_mask([circle.ravel().tolist()], 110, 120).sum()
    assert area == pytest.approx(np.pi * 50**2, rel=0.01)
    assert polygons_to_mask([], 4, 5).sum() == 0


@pytest.mark.parametrize(
    "polygon",
    [[], [1.0, 2.0, 3.0], [1.0, 1.0, 3.0, 3.0], [1.0] * 7, ["a"] * 6, 3.0, [[1.0, 2.0]] * 3]
    + [[0.0, 0.0, 5.0, 0.0, bad, 5.0] for bad in (float("nan"), float("inf"), 1e12)],
)
def test_what_is_no_polygon_is_refused(polygon):
    with pytest.raises(DataError, match="polygon"):
        polygons_to_mask([polygon], 4, 4)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 5], "counts": counts}
        for counts in ("0", "", "zzzz", "é", "o" * 30 + "0", b"\x00", None, [20.0], [25, -5])
    ]
    + [{"size": size, "counts": [20]} for size in (None, [20], [4, -5], "45", [4.0, 5.0])]
    + [{"size": [4, 5]}, {}],
)
def test_damaged_run_lengths_are_refused(rle):
    with pytest.raises(DataError, match="mask"):
        decode_rle(rle)
