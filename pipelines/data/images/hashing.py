"""What a picture is compared by: a hash of its lowest frequencies, a 32-px look, its contrast.
prepare.py asks for it once a picture is decoded; dedup/ compares what is made here."""

from __future__ import annotations

import cv2
import numpy as np

SIDE_PX, FREQUENCIES = 32, 8
NO_COLOUR = 128
# Products of whole numbers below 2**53 are exact in float64, so that every machine and every
# linear algebra library gives the same hash.
BASIS_SCALE = 2**14
LOOK_BYTES = SIDE_PX**2 + 8  # grey levels; Cb and Cr of four quarters
PLACES = 1 << np.arange(FREQUENCIES**2, dtype=np.uint64)[::-1]


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """The whole of an image, grey (H, W) or RGB (H, W, 3), as uint8 (32, 32)."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)


def look(pixels: np.ndarray, grey: np.ndarray) -> bytes:
    """What `dedup.looks` compares of an image, LOOK_BYTES: `small_grey` and its colours.

    Args:
        pixels: the image, grey (H, W) or RGB (H, W, 3).
        grey: its `small_grey`.
    """
    if pixels.ndim == 2:
        return grey.tobytes() + bytes([NO_COLOUR]) * 8
    quarters = cv2.resize(pixels, (2, 2), interpolation=cv2.INTER_AREA)
    return grey.tobytes() + cv2.cvtColor(quarters, cv2.COLOR_RGB2YCrCb)[:, :, 1:].tobytes()


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
