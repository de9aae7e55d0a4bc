"""Overlap of heat maps with masks.
One fixed rule turns a map into a mask, so nothing is tuned on what is measured."""

from __future__ import annotations

import numpy as np

from caft.metrics.intervals import Estimate, ratio


def binarise(heat: np.ndarray) -> np.ndarray:
    """Heat maps (..., H, W) to masks: above the midpoint of each map's least and greatest value.

    A constant map points at no place, nor does one with a NaN: both give an empty mask.
    """
    low = heat.min(axis=(-2, -1), keepdims=True)
    high = heat.max(axis=(-2, -1), keepdims=True)
    return heat > (low + high) / 2


def mask_overlap(predicted: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both and in either of two boolean masks (..., H, W)."""
    intersection = np.logical_and(predicted, mask).sum(axis=(-2, -1))
    return intersection, np.logical_or(predicted, mask).sum(axis=(-2, -1))


def mask_iou(predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Intersection over union of boolean masks (..., H, W); 0 where both are empty."""
    intersection, union = mask_overlap(predicted, mask)
    return intersection / np.maximum(union, 1)


def peak_overlap(heat: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels at which maps (..., H, W) are highest: those inside boolean masks, and all of them.

    Maps of segments are flat, so that many pixels share the highest value; the share of them inside
    is the chance that one of them, drawn evenly, hits. A map with a NaN has no highest pixel.
    """
    highest = heat == heat.max(axis=(-2, -1), keepdims=True)
    inside = np.logical_and(highest, mask).sum(axis=(-2, -1))
    return inside, highest.sum(axis=(-2, -1))


def overlap_scores(intersections: np.ndarray, unions: np.ndarray) -> dict[str, float]:
    """`miou`, the mean of R regions' IoU; `oiou`, all intersections over all unions, which weighs
    a region by its pixels, so that large ones decide it; `precision_50`, the share of regions whose
    IoU is at least 0.5, as published tables count it.
    """
    places = np.arange(len(unions))
    found = overlap_estimates(places, intersections, unions, len(unions))
    return {name: estimate.value for name, estimate in found.items()}


def overlap_estimates(
    image: np.ndarray, intersections: np.ndarray, unions: np.ndarray, images: int
) -> dict[str, Estimate]:
    """The same with what each image adds, of regions (R,) that lie on `image` (R,) of `images`."""
    iou = intersections / np.maximum(unions, 1)

    def of_images(values: np.ndarray) -> np.ndarray:
        return np.bincount(image, values, minlength=images)

    regions = of_images(np.ones(len(image)))
    return {
        "miou": ratio(of_images(iou), regions),
        "oiou": ratio(of_images(intersections), of_images(unions)),
        "precision_50": ratio(of_images(iou >= 0.5), regions),
    }


def centre_box(height: int, width: int) -> np.ndarray:
    """The control that looks at no text: a box of half the height and half the width, centred."""
    box = np.zeros((height, width), dtype=bool)
    box[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return box
