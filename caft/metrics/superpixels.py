"""How well superpixels keep to the outlines of things: three measures against a true segmentation.
Used by benchmarks/superpixels.py; label maps are plain arrays, however they were made."""

from __future__ import annotations

import cv2
import numpy as np


def boundary_recall(labels: np.ndarray, truth: np.ndarray, tolerance_px: int = 1) -> float:
    """Share of the true boundary that has a superpixel's boundary within `tolerance_px`.

    Args:
        labels, truth: integer label maps (H, W). A pixel lies on a boundary if the pixel to its
            right or below it has another label; distance is the larger of both axes'.

    Returns:
        0 .. 1; NaN where the truth has no boundary. After Martin et al., TPAMI 2004.
    """
    wanted = _boundary(truth)
    if not wanted.any():
        return float("nan")
    side = 2 * tolerance_px + 1
    near = cv2.dilate(_boundary(labels).astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    return float(near[wanted].mean())


def undersegmentation_error(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of pixels by which superpixels leak across true segments: for each true segment and
    each superpixel that touches it, the smaller of the parts inside and outside, summed.

    After Neubert and Protzel, "Superpixel Benchmark and Comparison", 2012; 0 is perfect.
    """
    shared = _overlaps(labels, truth)  # (superpixels, segments)
    outside = shared.sum(axis=1, keepdims=True) - shared
    return float(np.minimum(shared, outside).sum() / labels.size)


def achievable_segmentation_accuracy(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of pixels that are right when every superpixel takes the true segment it mostly
    covers: the best that anything built on these superpixels can do. After Liu et al., CVPR 2011.
    """
    return float(_overlaps(labels, truth).max(axis=1).sum() / labels.size)


def _boundary(labels: np.ndarray) -> np.ndarray:
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def _overlaps(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels that each label and each true segment share."""
    ours, label = np.unique(labels, return_inverse=True)
    theirs, segment = np.unique(truth, return_inverse=True)
    pairs = label.ravel() * len(theirs) + segment.ravel()
    return np.bincount(pairs, minlength=len(ours) * len(theirs)).reshape(len(ours), -1)
