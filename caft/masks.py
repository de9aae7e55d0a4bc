"""Masks as COCO writes them: run lengths, column by column, zeros first.
Between region files and the boolean arrays that metrics compare."""

from __future__ import annotations

from typing import Any

import numpy as np

from caft.errors import DataError


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A boolean mask (H, W) as uncompressed COCO run lengths: `size` [h, w] and `counts`."""
    flat = mask.astype(bool).flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """The inverse of `encode_rle`.

    Raises:
        DataError: the run lengths do not add up to the size.
    """
    height, width = rle["size"]
    counts = np.asarray(rle["counts"], dtype=np.int64)
    if counts.sum() != height * width:
        raise DataError(f"mask: run lengths add up to {counts.sum()}, not to {height} x {width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def polygons_to_mask(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """COCO polygons ([x1, y1, x2, y2, ...] in pixels) as a boolean mask (H, W): the pixels whose
    centre lies in any of them, by the even-odd rule.

    Raises:
        ValueError: a polygon that is no list of pairs of numbers.
    """
    mask = np.zeros((height, width), dtype=bool)
    centres = np.arange(height) + 0.5
    for polygon in polygons:
        x1, y1 = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
        x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
        edge, row = ((y1[:, None] > centres) != (y2[:, None] > centres)).nonzero()
        slope = (x2 - x1)[edge] / (y2 - y1)[edge]
        crossing = x1[edge] + (centres[row] - y1[edge]) * slope
        # The first pixel of its row whose centre lies right of the crossing.
        column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
        turns = np.zeros((height, width + 1), dtype=np.int64)
        np.add.at(turns, (row, column), 1)
        mask |= turns.cumsum(axis=1)[:, :width] % 2 == 1
    return mask
