"""Masks as COCO writes them: run lengths, column by column, zeros first.
Between region files and the boolean arrays that metrics compare."""

from __future__ import annotations

from typing import Any

import cv2
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
    """COCO polygons ([x1, y1, x2, y2, ...] in pixels) as a boolean mask (H, W)."""
    mask = np.zeros((height, width), dtype=np.uint8)
    points = [np.rint(np.asarray(p).reshape(-1, 2)).astype(np.int32) for p in polygons]
    cv2.fillPoly(mask, points, 1)
    return mask.astype(bool)
