"""A second look at two pictures whose hashes are near: whether they show the same.
Pictures of little structure share hashes by chance; duplicates and decontamination ask here."""

from __future__ import annotations

import numpy as np

from pipelines.data.images.hashing import LOOK_BYTES, SIDE_PX

BATCH = 512  # pairs at a time: some 50 MB
STEPS = 4  # of the search for the crop
MOST_SHIFT_PX = 1.5  # of 32, at an edge
STIFFNESS = 0.05  # keeps flat pictures, whose crop cannot be told, where they are
NOISE_LEVELS = 2.5  # grey levels that encoding alone may change
NO_DIFFERENCE = 0.5  # grey levels, as root mean square
MOST_COLOUR = 3  # levels of Cb and Cr, of a quarter of the picture
MOST_BRIGHTNESS = 16.0  # grey levels, of the mean
# What may differ, in parts of the detail, by the share of the picture that has detail. Blurred,
# text survives a crop; as it is, a picture that is busy all over does.
BUSY_LEVELS = 4.0
MOST_LEFT_BLURRED = ((0.08, 0.24), (0.13, 0.2))
MOST_LEFT = ((0.24, 0.2), (0.32, 0.8))

PLACES = np.arange(SIDE_PX, dtype=np.float32)
FROM_CENTRE = (2 * PLACES + 1) / SIDE_PX - 1  # -1 .. 1


def same_picture(looks: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which pairs are of one picture, encoded, resized or slightly cropped otherwise.

    Some 1 ms a pair on one core, 1 µs where the looks are equal or their colours differ.

    Args:
        looks: (N, LOOK_BYTES) uint8, as `as_looks` gives them.
        one, other: (P,) places in `looks`.

    Returns:
        (P,) bool.
    """
    parts = [np.empty(0, bool)]
    for start in range(0, len(one), BATCH):
        pair = looks[one[start : start + BATCH]], looks[other[start : start + BATCH]]
        grey = [side[:, : SIDE_PX**2].astype(np.float32) for side in pair]
        same = np.square(grey[0] - grey[1]).mean(axis=1) <= NO_DIFFERENCE**2
        near = _colour_difference(*pair) <= MOST_COLOUR
        near &= np.abs(grey[0].mean(axis=1) - grey[1].mean(axis=1)) <= MOST_BRIGHTNESS
        asked = np.flatnonzero(near & ~same)
        if len(asked):
            x, y = (side[asked].reshape(-1, SIDE_PX, SIDE_PX) for side in grey)
            same[asked] = _alike(x, y, MOST_LEFT)
            same[asked] |= _alike(_softened(x), _softened(y), MOST_LEFT_BLURRED)
        parts.append(near & same)
    return np.concatenate(parts)


def as_looks(values: list[bytes | None]) -> np.ndarray:
    """Stored looks as (N, LOOK_BYTES) uint8; a row of an older dataset has none: zeros."""
    blank = bytes(LOOK_BYTES)
    joined = b"".join(value or blank for value in values)
    return np.frombuffer(joined, np.uint8).reshape(-1, LOOK_BYTES)


def _alike(x: np.ndarray, y: np.ndarray, most: tuple[tuple[float, float], ...]) -> np.ndarray:
    left, busy = _difference(x, y)
    shares, limits = zip(*most, strict=True)
    return left <= np.interp(busy, shares, limits)


def _colour_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference of Cb or Cr in a quarter of the picture, (N,)."""
    colours = [looks[:, SIDE_PX**2 :].astype(np.int16) for looks in (one, other)]
    return np.abs(colours[0] - colours[1]).max(axis=1)


def _difference(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What differs between grey pictures (N, 32, 32) once the crop is found that explains most.

    Returns:
        the difference's root mean square over that of the detail, (N,); and the share of the
        picture that has detail, (N,).
    """
    crop = np.zeros((len(x), 4), np.float32)
    moved = x
    for _ in range(STEPS):
        crop = (crop + _step(moved, y)).clip(-MOST_SHIFT_PX, MOST_SHIFT_PX)
        moved = _moved(x, crop)
    detail = moved - _blurred(moved)
    energy = np.square(detail).mean(axis=(1, 2)) + NOISE_LEVELS**2
    left = np.sqrt(np.square(y - moved).mean(axis=(1, 2)) / energy)
    return left, (np.abs(detail) > BUSY_LEVELS).mean(axis=(1, 2))


def _step(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Shift and stretch of columns and rows that bring x nearer to y, (N, 4) pixels at an edge."""
    by_row, by_column = np.gradient(x, axis=(1, 2))
    slopes = np.stack(
        [by_column, by_column * FROM_CENTRE, by_row, by_row * FROM_CENTRE[:, None]], axis=-1
    ).reshape(len(x), -1, 4)  # (N, 1024, 4)
    turned = slopes.transpose(0, 2, 1)
    left = (y - x).reshape(len(x), -1, 1)
    square = turned @ slopes + np.eye(4, dtype=np.float32) * (STIFFNESS * SIDE_PX**2)
    return np.linalg.solve(square, turned @ left)[:, :, 0]


def _moved(x: np.ndarray, crop: np.ndarray) -> np.ndarray:
    columns = _interpolation(crop[:, 0], crop[:, 1])
    rows = _interpolation(crop[:, 2], crop[:, 3])
    return rows @ x @ columns.transpose(0, 2, 1)


def _interpolation(shift: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Matrices (N, 32, 32) that sample a line of pixels elsewhere, by Catmull and Rom's cubics."""
    places = PLACES + shift[:, None] + stretch[:, None] * FROM_CENTRE
    away = np.abs(places.clip(0, SIDE_PX - 1)[:, :, None] - PLACES)
    near = 1 + away**2 * (1.5 * away - 2.5)
    far = 2 + away * (-4 + away * (2.5 - 0.5 * away))
    weights = np.where(away < 1, near, np.where(away < 2, far, 0))
    return weights / weights.sum(axis=2, keepdims=True)


def _blurred(x: np.ndarray) -> np.ndarray:
    """Means of 3 x 3 pixels."""
    return _weighted(x, 1 / 3)


def _softened(x: np.ndarray) -> np.ndarray:
    return _weighted(x, 1 / 4)


def _weighted(x: np.ndarray, side: float) -> np.ndarray:
    """Each pixel with its neighbours of both axes, which have the weight `side`."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = side * (padded[:, :-2] + padded[:, 2:]) + (1 - 2 * side) * padded[:, 1:-1]
    return side * (rows[:, :, :-2] + rows[:, :, 2:]) + (1 - 2 * side) * rows[:, :, 1:-1]
