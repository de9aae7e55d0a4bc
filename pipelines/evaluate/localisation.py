"""How well heat maps of sentences cover the pixels that the sentences speak of.
Runs on the embedding actors, on features that are there anyway; the report draws the same maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from caft.localize import encode_sentences, heat_maps
from caft.metrics import binarise, centre_box, mask_overlap
from caft.model import CAFT, ImageFeatures
from pipelines.evaluate.benchmarks import Region


def region_overlaps(model: CAFT, features: ImageFeatures, regions: Sequence[Region]) -> np.ndarray:
    """Pixels shared with each region's mask and pixels in either, of the sentence's heat map and
    of the centre box: int64 (R, 4). `features` are of one image."""
    if not regions:
        return np.zeros((0, 4), dtype=np.int64)
    heats = heat_maps(model, features, encode_sentences(model, [r.text for r in regions]))
    rows = []
    for heat, region in zip(heats, regions, strict=True):
        mask = region.mask
        box = mask_overlap(centre_box(*mask.shape), mask)
        rows.append([*heat_overlap(heat, mask), *box])
    return np.asarray(rows, dtype=np.int64)


def heat_overlap(heat: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union, in the mask's pixels, of a heat map of any size with a mask."""
    height, width = mask.shape
    fitted = cv2.resize(heat, (width, height), interpolation=cv2.INTER_NEAREST)
    return mask_overlap(binarise(fitted), mask)


def one_image(features: ImageFeatures, n: int) -> ImageFeatures:
    """The features of the n-th image alone, still with a batch dimension."""
    return replace(
        features,
        whole=features.whole[n : n + 1],
        fine=features.fine[n : n + 1],
        fine_cls=features.fine_cls[n : n + 1],
        coarse=features.coarse[n : n + 1],
        assignments=[assignment[n : n + 1] for assignment in features.assignments],
        superpixels=features.superpixels[n : n + 1],
    )
