"""The look of a picture: coarse profiles of its grey levels, and its colours, in LOOK_BYTES.
prepare.py asks for it beside the hash; dedup/looks.py compares what is made here."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

BINS = 48  # of a profile
BANDS = 3  # horizontal ones, in each of which columns are averaged
PROFILES = BANDS + 1  # and that of the rows
COLOURS = 4  # fields of a side
NO_COLOUR = 128
MOST_PX = 256  # of a side; larger pictures are halved first
# Of a bin, wide enough that a profile can be shifted by parts of one; lines of text lie closer to
# each other than words.
COLUMN_BLUR, ROW_BLUR = 0.7, 0.95
# Weights are whole numbers, whose sums are exact in float64: every machine makes the same look.
WEIGHT = 2**18
# The steps between neighbouring bins that are told apart: fine where they are small.
HALF, LEAST_STEP, MOST_STEP = 127, 0.25, 255
STEPS = LEAST_STEP * np.expm1(np.arange(HALF + 1) / HALF * np.log1p(MOST_STEP / LEAST_STEP))
STEPS = np.concatenate([-STEPS[:0:-1], STEPS]).round(3)  # (255,), rising
STEP_LIST: list[float] = STEPS.tolist()
BORDERS: list[float] = ((STEPS[1:] + STEPS[:-1]) / 2).tolist()
LOOK_BYTES = PROFILES * BINS + 2 * COLOURS**2


class Looks(NamedTuple):
    """What looks say, each array of N pictures."""

    columns: np.ndarray  # (N, BANDS, BINS) grey levels of columns, in each band
    rows: np.ndarray  # (N, 1, BINS) grey levels of rows
    colours: np.ndarray  # (N, COLOURS, COLOURS, 2) Cb and Cr

    def take(self, places: np.ndarray) -> Looks:
        return Looks(*(array[places] for array in self))


def make_look(pixels: np.ndarray, size: tuple[int, int], mirrored: bool = False) -> bytes:
    """LOOK_BYTES of an image.

    Args:
        pixels: grey (H, W) or RGB (H, W, 3), perhaps shrunk by libjpeg, which rounds up.
        size: width and height of the image, upright.
        mirrored: left and right are to change places.
    """
    length = [
        _true_length(side, count) for side, count in zip(size, pixels.shape[1::-1], strict=True)
    ]
    for axis in range(2):
        while pixels.shape[1 - axis] > MOST_PX:
            pixels, length[axis] = _halved(pixels, axis), length[axis] / 2
    height, width = pixels.shape[:2]
    if pixels.ndim == 2:
        grey, colours = pixels, np.full((COLOURS, COLOURS, 2), NO_COLOUR, np.uint8)
    else:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        colours = _fields(pixels)
    levels = grey.astype(np.float64)
    across = _blur(width, length[0], COLUMN_BLUR)
    down = _blur(height, length[1], ROW_BLUR)
    bands = _bands(height) @ levels @ across.T / WEIGHT**2  # (BANDS, BINS)
    rows = down @ levels.sum(axis=1) / (WEIGHT * width)  # (BINS,)
    if mirrored:
        bands, colours = bands[:, ::-1], colours[:, ::-1]
    codes = b"".join(_coded(profile) for profile in [*bands.tolist(), rows.tolist()])
    return codes + colours.tobytes()


def read_looks(looks: np.ndarray) -> Looks:
    """What (N, LOOK_BYTES) uint8 say."""
    codes, colours = np.split(looks, [PROFILES * BINS], axis=1)
    codes = codes.reshape(-1, PROFILES, BINS)
    steps = STEPS[codes.clip(0, 2 * HALF)]
    steps[:, :, 0] = codes[:, :, 0]
    levels = steps.cumsum(axis=2).astype(np.float32)
    fields = colours.reshape(-1, COLOURS, COLOURS, 2).astype(np.float32)
    return Looks(levels[:, :BANDS], levels[:, BANDS:], fields)


def _coded(profile: list[float]) -> bytes:
    """A profile's first level, and the nearest STEPS from bin to bin; errors do not add up."""
    first = min(round(profile[0]), 255)
    level, codes = float(first), [first]
    for value in profile[1:]:
        code = bisect_left(BORDERS, value - level)
        codes.append(code)
        level += STEP_LIST[code]
    return bytes(codes)


def _halved(pixels: np.ndarray, axis: int) -> np.ndarray:
    """Pixels of half the width (axis 0) or height (axis 1), means of two; rounded up."""
    size = [pixels.shape[1], pixels.shape[0]]
    size[axis] = -(-size[axis] // 2)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def _fields(pixels: np.ndarray) -> np.ndarray:
    """Cb and Cr (COLOURS, COLOURS, 2) of the means of as many fields."""
    height, width = pixels.shape[:2]
    rows = _shares(height) @ pixels.reshape(height, -1).astype(np.float64)
    sums = _shares(width) @ rows.reshape(COLOURS, width, -1)  # (COLOURS, COLOURS, 3)
    means = np.round(sums / WEIGHT**2).astype(np.uint8)
    return cv2.cvtColor(means, cv2.COLOR_RGB2YCrCb)[:, :, 1:]


def _true_length(side: int, length: int) -> float:
    """How many of `length` pixels a side is that libjpeg shrank: the last may be part of one."""
    for factor in (2, 4, 8):
        if -(-side // factor) == length:
            return side / factor
    return float(length)


@lru_cache(maxsize=512)
def _blur(count: int, length: float, blur: float) -> np.ndarray:
    """Weights (BINS, count) of pixels in overlapping bins of a side that is `length` pixels, as
    whole numbers."""
    places = (np.arange(count) + 0.5) / length * BINS
    away = (places - np.arange(BINS)[:, None] - 0.5) / max(blur, 0.5 * BINS / length)
    return _whole(np.exp(-(away**2) / 2))


@lru_cache(maxsize=512)
def _bands(length: int) -> np.ndarray:
    """Weights (BANDS, length) of rows in bands that fade into each other, as whole numbers."""
    places = ((np.arange(length) + 0.5) / length * BANDS).clip(0.5, BANDS - 0.5)
    weights = (1 - np.abs(places - np.arange(BANDS)[:, None] - 0.5)).clip(0)
    weights[~weights.any(axis=1)] = 1  # of fewer rows than bands
    return _whole(weights)


@lru_cache(maxsize=512)
def _shares(count: int) -> np.ndarray:
    """Weights (COLOURS, count) of pixels in fields of equal size, as whole numbers."""
    edges = np.arange(COLOURS + 1)[:, None] * count / COLOURS
    parts = (edges[1:] - np.arange(count)).clip(0, 1) - (edges[:-1] - np.arange(count)).clip(0, 1)
    return _whole(parts)


def _whole(weights: np.ndarray) -> np.ndarray:
    return np.round(WEIGHT * weights / weights.sum(axis=1, keepdims=True))
