"""Reads the superpixels that earlier versions stored: SPX1, a code of their borders.
What `stored` writes today is larger before Parquet compresses it, and read ten times as fast."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from caft.errors import DataError

HEADER = struct.Struct("<HHHI")  # height, width, count, bytes of the body before compression
COARSEST_STEP_PX = 16  # a power of two, about one superpixel
COMPRESSION = "brotli"


def decode_borders(sealed: bytes) -> np.ndarray:
    """Labels (H, W) int32 of a map whose checksum and header were found right.

    Every 16th pixel of every 16th row comes first, then those half-way between known ones, again
    and again. Where the four known neighbours of a pixel agree it nearly always agrees with them,
    so what costs bytes lies on the borders between superpixels.

    Raises:
        DataError: the compressed body is damaged or ends early.
    """
    import pyarrow  # slow to import, and few models meet such maps

    height, width, count, size = HEADER.unpack_from(sealed)
    try:
        body = pyarrow.Codec(COMPRESSION).decompress(sealed[HEADER.size :], size, asbytes=True)
    except OSError as error:
        raise DataError(f"label map of {len(sealed)} bytes: damaged: {error}") from None
    return _traverse(height, width, count, _Reader(body, count)).reshape(height, width)


def _traverse(height: int, width: int, count: int, reader: _Reader) -> np.ndarray:
    """Visit every pixel once, in the order in which it was written; returns the labels (H x W,)."""
    known = np.zeros(height * width, dtype=np.int32)
    first = _coarsest(height, width)
    known[first] = reader.spell(first, np.arange(len(first)) * count // len(first))
    for index, neighbours in _rounds(height, width):
        around = known[neighbours]  # (4, n)
        agree = (around[0] == around[1]) & (around[0] == around[2]) & (around[0] == around[3])
        sure, mixed = np.flatnonzero(agree), np.flatnonzero(~agree)
        known[index[sure]] = reader.settle(
            index[sure], around[:1, sure], np.ones((1, len(sure)), dtype=bool)
        )
        candidates, fresh, order = _rank(around[:, mixed])
        chosen = index[mixed[order]]
        known[chosen] = reader.settle(chosen, candidates, fresh)
    return known


def _rank(around: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates (4, n) of pixels whose neighbours (4, n) differ, the most frequent one first;
    which of them are fresh (4, n); and the order in which the pixels come.

    Pixels are ordered by how often their first candidate occurs: flags of equal odds then lie
    side by side, which compresses best.
    """
    votes = np.zeros(around.shape, dtype=np.int8)
    for one, other in itertools.combinations(range(len(around)), 2):
        equal = around[one] == around[other]
        votes[one] += equal
        votes[other] += equal
    best = votes.argmax(axis=0)
    pixels = np.arange(len(best))
    order = np.argsort(votes[best, pixels], kind="stable")
    candidates, best = around[:, order], best[order]
    candidates[best, pixels], candidates[0] = candidates[0], candidates[best, pixels]
    fresh = np.ones(candidates.shape, dtype=bool)
    for earlier, later in itertools.combinations(range(len(candidates)), 2):
        fresh[later] &= candidates[later] != candidates[earlier]
    return candidates, fresh, order


def _coarsest(height: int, width: int) -> np.ndarray:
    y, x = np.arange(0, height, COARSEST_STEP_PX), np.arange(0, width, COARSEST_STEP_PX)
    return (y[:, None] * width + x).ravel()


@lru_cache(maxsize=4)
def _rounds(height: int, width: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Pixels (n,) and their four known neighbours (4, n), as flat indices, round by round."""
    return tuple(_make_rounds(height, width))


def _make_rounds(height: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    step = COARSEST_STEP_PX // 2
    while step:
        odd_y, even_y = np.arange(step, height, 2 * step), np.arange(0, height, 2 * step)
        odd_x, even_x = np.arange(step, width, 2 * step), np.arange(0, width, 2 * step)
        diagonal = [(-step, -step), (-step, step), (step, -step), (step, step)]
        straight = [(-step, 0), (0, -step), (0, step), (step, 0)]
        y, x = _pairs(odd_y, odd_x)
        yield y * width + x, _neighbours(y, x, diagonal, height, width)
        y, x = np.concatenate([_pairs(even_y, odd_x), _pairs(odd_y, even_x)], axis=1)
        yield y * width + x, _neighbours(y, x, straight, height, width)
        step //= 2


def _pairs(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(y, x, indexing="ij")).reshape(2, -1)


def _neighbours(
    y: np.ndarray, x: np.ndarray, offsets: list[tuple[int, int]], height: int, width: int
) -> np.ndarray:
    """Flat indices (4, n); a neighbour outside the map is replaced by the one on the other side,
    or by the pixel itself, which counts as 0 until it is known."""

    def inside(at: np.ndarray, offset: int, size: int) -> np.ndarray:
        mirrored = np.where((at + offset < 0) | (at + offset >= size), at - offset, at + offset)
        return np.where((mirrored < 0) | (mirrored >= size), at, mirrored)

    return np.stack([inside(y, dy, height) * width + inside(x, dx, width) for dy, dx in offsets])


class _Reader:
    """What the writer noted: labels that nothing predicts, and which guesses are right."""

    def __init__(self, body: bytes, count: int) -> None:
        size = int.from_bytes(body[:4], "little")
        if len(body) < 4 + 2 * size:
            raise DataError("label map: ends early; write the column again")
        planes = np.frombuffer(body, np.uint8, 2 * size, offset=4).reshape(2, -1)
        self._count = count
        self._spelt = planes[0].astype(np.int32) + (planes[1].astype(np.int32) << 8)
        self._flags = np.unpackbits(np.frombuffer(body, np.uint8, offset=4 + 2 * size)).view(bool)
        self._spelt_at = self._flags_at = 0

    def spell(self, index: np.ndarray, guess: np.ndarray) -> np.ndarray:
        """Labels (n,) of pixels that nothing predicts, `guess` (n,) being near them."""
        start, self._spelt_at = self._spelt_at, self._spelt_at + len(index)
        return (guess + _checked(self._spelt[start : self._spelt_at], len(index))) % self._count

    def settle(self, index: np.ndarray, candidates: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        """Labels (n,) of pixels with C candidates (C, n) each, likeliest first; one that repeats
        an earlier candidate of its pixel is not `fresh` (C, n)."""
        labels = candidates[0].copy()
        open_ = np.ones(len(index), dtype=bool)
        for candidate, asked in zip(candidates, fresh, strict=True):
            asked = np.flatnonzero(open_ & asked)
            start, self._flags_at = self._flags_at, self._flags_at + len(asked)
            right = asked[~_checked(self._flags[start : self._flags_at], len(asked))]
            labels[right] = candidate[right]
            open_[right] = False
        labels[open_] = self.spell(index[open_], labels[open_])
        return labels


def _checked(values: np.ndarray, size: int) -> np.ndarray:
    if len(values) != size:
        raise DataError("label map: ends early; write the column again")
    return values
