"""Overlap of heat maps with masks.
One fixed rule turns a map into a mask, so nothing is tuned on what is measured."""

from __future__ import annotations

import numpy as np


def binarise(heat: np.ndarray) -> np.ndarray:
    """Heat maps (..., H, W) to masks: above the midpoint of each map's least and greatest value.

    A constant map has no place it points at, and gives an empty mask.
    """
    low = heat.min(axis=(-2, -1), keepdims=True)
    high = heat.max(axis=(-2, -1), keepdims=True)
    return heat > (low + high) / 2


def mask_iou(predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Intersection over union of boolean masks (..., H, W); 0 where both are empty."""
    intersection = np.logical_and(predicted, mask).sum(axis=(-2, -1))
    union = np.logical_or(predicted, mask).sum(axis=(-2, -1))
    return intersection / np.maximum(union, 1)


def centre_box(height: int, width: int) -> np.ndarray:
    """The control that looks at no text: a box of half the height and half the width, centred."""
    box = np.zeros((height, width), dtype=bool)
    box[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return box
