"""Masks as COCO writes them: run lengths, column by column, zeros first; polygons by pycocotools.
Between region files and the boolean arrays that metrics compare."""

from __future__ import annotations

from typing import Any

import numpy as np

from caft.errors import DataError

# Polygon corners farther than this from the image are damage, and would cost memory by the pixel.
FARTHEST_CORNER = 1_000_000


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A boolean mask (H, W) as uncompressed COCO run lengths: `size` [h, w] and `counts`."""
    flat = mask.astype(bool).flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """The boolean mask (H, W) of COCO run lengths: `size` [h, w], and `counts` as a list or as
    COCO's compressed text.

    Raises:
        DataError: the run lengths cannot be read or do not add up to the size.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(n, int) and n > 0 for n in size)
    ):
        raise DataError(f"mask: size is {size!r}, not [height, width] in pixels")
    height, width = size
    if isinstance(counts, str | bytes):
        runs = _decompress(counts.encode() if isinstance(counts, str) else counts)
    elif isinstance(counts, list) and all(isinstance(n, int) for n in counts):
        runs = counts
    else:
        raise DataError("mask: counts are neither a list of whole numbers nor compressed text")
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise DataError(f"mask: run lengths add up to {sum(runs)}, not to {height} x {width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def polygons_to_mask(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """COCO polygons ([x1, y1, x2, y2, ...] in pixels) as a boolean mask (H, W): the pixels that
    pycocotools gives to any of them, as every published score on COCO's masks has it.

    Raises:
        DataError: a polygon without three corners, or a corner that is no place near the image.
    """
    from pycocotools import mask as coco  # here, so that `import caft` does not need it

    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        try:
            corners = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError("mask: a polygon is no list of numbers") from None
        if corners.ndim != 1 or corners.size < 6 or corners.size % 2:
            raise DataError("mask: a polygon is no list [x1, y1, x2, y2, x3, y3, ...]")
        if not (np.abs(corners) <= FARTHEST_CORNER).all():
            raise DataError("mask: a polygon's corner is no number or far outside the image")
        (rle,) = coco.frPyObjects([corners.tolist()], height, width)
        mask |= coco.decode(rle).astype(bool)
    return mask


def _decompress(text: bytes) -> list[int]:
    """COCO's compressed counts: six bits a character, five of them the number's, the sixth "more
    follows"; from the third number on, differences to the number two before. Read here and not by
    pycocotools, which returns memory it never wrote where a text is damaged."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError("mask: compressed counts that are damaged")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise DataError("mask: compressed counts that end in the middle of a number")
    return runs
