"""A second look at two pictures whose hashes are near: whether they show the same.
Pictures of little structure share hashes by chance; duplicates and decontamination ask here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipelines.data.dedup.crops import Crop, cut, detail, find_crop, spread
from pipelines.data.images.look import LOOK_BYTES, Looks, read_looks

BATCH = 512  # pairs at a time: some 100 MB
# Detail, in grey levels of a profile: what encoding alone may change, and what is certainly there.
NOISE, CERTAIN = 0.7, 0.6
FEW, LITTLE = 5, 8.0  # bins of detail: a profile with fewer is plain; as many count as equal anyway
MOST_GAIN = 0.12  # of contrast, which encoding and blur change
# The share of the detail that may differ: as it is, and where a crop was found; more of a picture
# with much detail.
MOST_LEFT, MOST_LEFT_CROPPED = 0.25, 0.31
LEAST_CROPPED, SURELY_CROPPED = 0.004, 0.011  # of a side
MUCH, LEFT_PER_BIN, MOST_MORE_LEFT = 45.0, 0.006, 0.06  # bins
# A picture that is busy all over is not taken for another by chance: its colours may differ.
BUSY, LEVEL_PER_BIN, COLOUR_PER_BIN = 85.0, 0.2, 0.5  # bins
# Grey levels, as root mean square of a profile, and levels of Cb and Cr in a field.
MOST_LEVEL, LEVEL_PER_DETAIL, LEVEL_PER_CROP = 3.0, 0.5, 35.0
MOST_COLOUR, COLOUR_PER_CROP = 2.8, 300.0
COLOUR_BEYOND_CROPS = 40.0
MOST_LEVEL_PLAIN, MOST_COLOUR_PLAIN = 1.3, 2.0


class Difference(NamedTuple):
    """How two pictures differ once a crop is taken into account, (P,) each."""

    left: np.ndarray  # the part of the detail that is not the same, 0 .. about 1.4
    level: np.ndarray  # grey levels
    colour: np.ndarray  # levels of Cb or Cr
    bins: np.ndarray  # how much detail there is; 0: the picture is plain
    detail: np.ndarray  # grey levels
    cropped: np.ndarray  # of a side, 0 .. 1


def same_picture(looks: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which pairs are of one picture, encoded, resized or slightly cropped otherwise.

    Some 0.5 ms a pair on one core, 2 µs where the looks are equal or their colours differ.

    Args:
        looks: (N, LOOK_BYTES) uint8, as `as_looks` gives them.
        one, other: (P,) places in `looks`.

    Returns:
        (P,) bool.
    """
    parts = [np.empty(0, bool)]
    for start in range(0, len(one), BATCH):
        parts.append(_same(looks[one[start : start + BATCH]], looks[other[start : start + BATCH]]))
    return np.concatenate(parts)


def as_looks(values: list[bytes | None]) -> np.ndarray:
    """Stored looks as (N, LOOK_BYTES) uint8; zeros for a row of an older dataset, which has none
    or another."""
    blank = bytes(LOOK_BYTES)
    joined = b"".join(value if value and len(value) == LOOK_BYTES else blank for value in values)
    return np.frombuffer(joined, np.uint8).reshape(-1, LOOK_BYTES)


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    same = (one == other).all(axis=1)
    left = np.flatnonzero(~same)
    x, y = read_looks(one[left]), read_looks(other[left])
    whole = Crop.none(len(left))
    given = _difference(x, y, whole, whole)
    found = _alike(given)
    hopeless = given.colour > np.where(given.bins == 0, MOST_COLOUR_PLAIN, COLOUR_BEYOND_CROPS)
    hopeless &= given.bins <= BUSY
    for one_way in ((x, y), (y, x)):
        rest = np.flatnonzero(~found & ~hopeless)
        if len(rest):
            larger, smaller = (looks.take(rest) for looks in one_way)
            columns = find_crop(larger.columns, smaller.columns)
            rows = find_crop(larger.rows, smaller.rows)
            found[rest] = _alike(_difference(larger, smaller, columns, rows))
    same[left] = found
    return same


def _alike(given: Difference) -> np.ndarray:
    plain = given.bins == 0
    crop = (given.cropped - LEAST_CROPPED) / (SURELY_CROPPED - LEAST_CROPPED)
    more = ((given.bins - MUCH) * LEFT_PER_BIN).clip(0, MOST_MORE_LEFT)
    most_left = MOST_LEFT + crop.clip(0, 1) * (MOST_LEFT_CROPPED - MOST_LEFT) + more
    busy = (given.bins - BUSY).clip(0)
    level = MOST_LEVEL + LEVEL_PER_DETAIL * given.detail + LEVEL_PER_CROP * given.cropped
    level = np.where(plain, MOST_LEVEL_PLAIN, level + LEVEL_PER_BIN * busy)
    colour = MOST_COLOUR + COLOUR_PER_CROP * given.cropped + COLOUR_PER_BIN * busy
    colour = np.where(plain, MOST_COLOUR_PLAIN, colour)
    return (given.left <= most_left) & (given.level <= level) & (given.colour <= colour)


def _difference(x: Looks, y: Looks, columns: Crop, rows: Crop) -> Difference:
    """How y differs from what the crops leave of x."""
    left_across, across = _detail_left(cut(x.columns, columns), y.columns)
    left_down, down = _detail_left(cut(x.rows, rows), y.rows)
    means = [looks.columns.mean(axis=1) for looks in (x, y)]
    lines = [looks.rows[:, 0] for looks in (x, y)]
    level = np.maximum(
        _level_difference(means[0], means[1], columns, rows, lines[0]),
        _level_difference(lines[0], lines[1], rows, columns, means[0]),
    )
    there = [np.sqrt(np.square(detail(profile)).mean(axis=1)) for profile in (means[1], lines[1])]
    return Difference(
        left=np.maximum(left_across, left_down),
        level=level,
        colour=np.abs(x.colours - y.colours).max(axis=(1, 2, 3), initial=0),
        bins=across + down,
        detail=np.maximum(*there),
        cropped=np.maximum(columns.share, rows.share),
    )


def _detail_left(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of the detail of profiles (P, K, BINS) that differs, each bin weighted by the
    detail around it, and in how many bins there is detail; none where a profile is plain."""
    x, y = detail(x), detail(y)
    gain = ((x * y).sum(axis=2) + 1) / ((x * x).sum(axis=2) + 1)
    x = x * gain.clip(1 - MOST_GAIN, 1 + MOST_GAIN)[:, :, None]
    both = (x**2 + y**2) / 2
    weight = 1 / (spread(both) + NOISE**2)
    some = (both > CERTAIN**2).sum(axis=(1, 2)) >= FEW
    bins = (both * weight).sum(axis=(1, 2)) * some
    differing = (np.square(x - y) * weight).sum(axis=(1, 2)) * some
    return np.sqrt(differing / (bins + LITTLE)), bins


def _level_difference(
    x: np.ndarray, y: np.ndarray, crop: Crop, lost: Crop, edges: np.ndarray
) -> np.ndarray:
    """Root mean square of the levels that differ between y and what `crop` leaves of x, both
    (P, BINS), without the edges that are `lost` along the other axis, whose profile is `edges`."""
    first, last = edges[:, :2].mean(axis=1), edges[:, -2:].mean(axis=1)
    gone = (lost.start * first + lost.end * last)[:, None]
    left = (cut(x[:, None], crop)[:, 0] - gone) / (1 - lost.share)[:, None]
    return np.sqrt(np.square(left - y).mean(axis=1))
