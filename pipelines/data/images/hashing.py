"""What a picture is compared by: a hash of its lowest frequencies, and its contrast.
prepare.py asks for it once a picture is decoded; look.py makes what confirms a near hash."""

from __future__ import annotations

import cv2
import numpy as np

SIDE_PX, FREQUENCIES = 32, 8
# Products of whole numbers below 2**53 are exact in float64, so that every machine and every
# linear algebra library gives the same hash.
BASIS_SCALE = 2**14
PLACES = 1 << np.arange(FREQUENCIES**2, dtype=np.uint64)[::-1]


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """The whole of an image, grey (H, W) or RGB (H, W, 3), as uint8 (32, 32)."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)


def contrast(grey: np.ndarray) -> float:
    """Standard deviation of the levels of `small_grey`'s result, 0 .. 127."""
    return float(cv2.meanStdDev(grey)[1][0, 0])


def perceptual_hash(grey: np.ndarray) -> int:
    """64-bit hash of `small_grey`'s result: which of its 8 x 8 lowest frequencies are above
    their median. The hash of the mirrored image is that of `grey[:, ::-1]`."""
    frequencies = (BASIS @ grey @ BASIS.T).ravel()
    median = np.partition(frequencies, len(frequencies) // 2 - 1)[len(frequencies) // 2 - 1]
    return int(PLACES[frequencies > median].sum())


def _basis() -> np.ndarray:
    """Rows of the cosine transform (8, 32), as whole numbers."""
    places = (2 * np.arange(SIDE_PX) + 1) / (2 * SIDE_PX)
    waves = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * places)
    waves[0] /= np.sqrt(2)
    return np.round(BASIS_SCALE * waves)


BASIS = _basis()
