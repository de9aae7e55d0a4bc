"""Superpixels kept beside the images of a dataset: made once, few bytes each, read at every epoch.
The data stage writes them, the loaders of training and evaluation read them."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from caft.config import FlatImageConfig, ImageConfig, SuperpixelConfig
from caft.errors import ConfigError, DataError
from caft.superpixels.labels import cell_grid, superpixel_labels
from caft.superpixels.network import SFCN

MAGIC = b"SPX1"
CHECKSUM = struct.Struct("<I")  # CRC-32 of all that follows it
HEADER = struct.Struct("<HHHI")  # height, width, count, bytes of the body before compression
MAX_SIDE_PX = 2048  # no header can ask for more memory than such a map takes
COARSEST_STEP_PX = 16  # a power of two, about one superpixel
COMPRESSION, EFFORT = "brotli", 10  # 11 makes them no smaller


def encode_superpixels(
    images: Tensor, config: SuperpixelConfig, map_size_px: int, network: SFCN | None = None
) -> list[bytes]:
    """What the `superpixels` column of a dataset holds for each image.

    Args:
        images: (B, 3, S, S) uint8, whole images as `caft.preprocessing.eval_image` squashes them,
            S being the model's input size.
        map_size_px: of the stored map. Half of S takes half the bytes, and costs borders a pixel.
        network: the superpixel network, where `method` is 'sfcn'.

    Raises:
        ConfigError: S is no multiple of `map_size_px`, or as `superpixel_labels` does.
    """
    side = images.shape[-1]
    if side % map_size_px:
        raise ConfigError(
            f"superpixels.map_size_px {map_size_px}: images of {side} px have no whole number of "
            f"pixels per pixel of the map; set {side} or {side // 2}"
        )
    rows, columns = cell_grid(side, side, config.cell_px)
    labels = superpixel_labels(images, config, network)
    smaller = shrink_labels(labels, side // map_size_px).cpu().numpy()
    return [encode_label_map(one, rows * columns) for one in smaller]


def shrink_labels(labels: Tensor, factor: int) -> Tensor:
    """Label maps (B, H, W) at (B, H / factor, W / factor), by the most frequent label of each
    block. A superpixel so thin that it wins no block is given one that it lies in."""
    if factor == 1:
        return labels
    blocks = rearrange(labels, "b (h i) (w j) -> (i j) b h w", i=factor, j=factor)
    votes = torch.stack([(blocks == one).sum(dim=0, dtype=torch.int16) for one in blocks])
    smaller = blocks.gather(0, votes.argmax(dim=0, keepdim=True))[0]
    for full, small in zip(labels, smaller, strict=True):
        count = int(full.max()) + 1
        present, won = (torch.bincount(one.flatten(), minlength=count) > 0 for one in (full, small))
        for label in (present & ~won).nonzero().flatten():
            y, x = (full == label).nonzero()[0] // factor
            small[y, x] = label
    return smaller


def stored_labels(data: bytes | None, image: ImageConfig | FlatImageConfig) -> np.ndarray | None:
    """The map (h, w) in a dataset's `superpixels` column, None where the row has none, and where
    the model is to see squares: a control must not read what it is a control of.

    Raises:
        DataError: a damaged map, or one of another number of superpixels than the model's.
    """
    if not data or image.superpixels.method == "grid":
        return None
    count = image.superpixel_count
    header = label_map_header(data)
    if header.count != count:
        raise DataError(
            f"stored superpixels: the map has {header.count} of them, the model takes {count}; "
            "write the column again for this model, or leave it empty"
        )
    return decode_label_map(data)


@dataclass(frozen=True)
class LabelMapHeader:
    """What a stored map says of itself: its size in pixels, and that labels are below `count`."""

    height: int
    width: int
    count: int


def encode_label_map(labels: np.ndarray, count: int | None = None) -> bytes:
    """A label map (H, W) with labels 0 .. count - 1 as bytes that describe themselves.

    Every 16th pixel of every 16th row comes first, then those half-way between known ones, again
    and again. Where the four known neighbours of a pixel agree it nearly always agrees with them,
    so what costs bytes lies on the borders between superpixels.

    Args:
        count: number of labels, dead ones included; None: the largest label plus one.

    Raises:
        DataError: not such a map, a side above 2,048 px, or more than 65,535 labels.
    """
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise DataError(
            f"label map: integers (H, W) are due, got {labels.dtype} of shape {labels.shape}"
        )
    low, high = int(labels.min()), int(labels.max())
    count = high + 1 if count is None else count
    if low < 0 or high >= count or count > np.iinfo(np.uint16).max:
        raise DataError(f"label map: labels {low} .. {high} do not fit {count} superpixels")
    height, width = labels.shape
    if max(height, width) > MAX_SIDE_PX:
        raise DataError(f"label map of {width} x {height} px: a side may have {MAX_SIDE_PX} px")
    writer = _Writer(labels.astype(np.int32).ravel(), count)
    _traverse(height, width, count, writer)
    body = writer.body()
    sealed = HEADER.pack(height, width, count, len(body)) + _codec().compress(body, asbytes=True)
    return MAGIC + CHECKSUM.pack(zlib.crc32(sealed)) + sealed


def decode_label_map(data: bytes) -> np.ndarray:
    """The inverse of `encode_label_map`: int32 (H, W).

    Raises:
        DataError: the bytes are no label map, or damaged.
    """
    header, size, packed = _open(data)
    try:
        body = _codec().decompress(packed, size, asbytes=True)
    except OSError as error:
        raise DataError(f"label map of {len(data)} bytes: damaged: {error}") from None
    labels = _traverse(header.height, header.width, header.count, _Reader(body, header.count))
    return labels.reshape(header.height, header.width)


def label_map_header(data: bytes) -> LabelMapHeader:
    """Size and number of labels of a stored map; raises DataError as `decode_label_map` does."""
    return _open(data)[0]


@lru_cache
def _codec() -> Any:
    import pyarrow  # slow to import, and few models meet stored maps

    return pyarrow.Codec(COMPRESSION, EFFORT)


def _open(data: bytes) -> tuple[LabelMapHeader, int, bytes]:
    """Header, size of the body and compressed body."""
    start = len(MAGIC) + CHECKSUM.size
    if len(data) < start + HEADER.size or not data.startswith(MAGIC):
        raise DataError(f"label map of {len(data)} bytes: not one; write the column again")
    sealed = data[start:]
    if CHECKSUM.unpack_from(data, len(MAGIC))[0] != zlib.crc32(sealed):
        raise DataError(f"label map of {len(data)} bytes: damaged; write the column again")
    height, width, count, size = HEADER.unpack_from(sealed)
    if not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX):
        raise DataError(f"label map of {width} x {height} px: impossible; write the column again")
    return LabelMapHeader(height, width, count), size, sealed[HEADER.size :]


class _Tape(Protocol):
    """What the traversal asks of its two ends: the labels of some pixels, given good guesses."""

    def spell(self, index: np.ndarray, guess: np.ndarray) -> np.ndarray:
        """Labels (n,) of pixels that nothing predicts, `guess` (n,) being near them."""
        ...

    def settle(self, index: np.ndarray, candidates: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        """Labels (n,) of pixels with C candidates (C, n) each, likeliest first; one that repeats
        an earlier candidate of its pixel is not `fresh` (C, n)."""
        ...


def _traverse(height: int, width: int, count: int, tape: _Tape) -> np.ndarray:
    """Visit every pixel once, in an order that both ends share; returns the labels (H x W,)."""
    known = np.zeros(height * width, dtype=np.int32)
    first = _coarsest(height, width)
    known[first] = tape.spell(first, np.arange(len(first)) * count // len(first))
    for index, neighbours in _rounds(height, width):
        around = known[neighbours]  # (4, n)
        agree = (around[0] == around[1]) & (around[0] == around[2]) & (around[0] == around[3])
        sure, mixed = np.flatnonzero(agree), np.flatnonzero(~agree)
        known[index[sure]] = tape.settle(
            index[sure], around[:1, sure], np.ones((1, len(sure)), dtype=bool)
        )
        candidates, fresh, order = _rank(around[:, mixed])
        chosen = index[mixed[order]]
        known[chosen] = tape.settle(chosen, candidates, fresh)
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


class _Writer:
    """The encoding end: knows all labels, and notes what the guesses leave open."""

    def __init__(self, labels: np.ndarray, count: int) -> None:
        self._labels, self._count = labels, count
        self._spelt: list[np.ndarray] = []
        self._flags: list[np.ndarray] = []

    def spell(self, index: np.ndarray, guess: np.ndarray) -> np.ndarray:
        self._spelt.append((self._labels[index] - guess) % self._count)
        return self._labels[index]

    def settle(self, index: np.ndarray, candidates: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        labels = self._labels[index]
        open_ = np.ones(len(index), dtype=bool)
        for candidate, asked in zip(candidates, fresh, strict=True):
            wrong = candidate != labels
            self._flags.append(wrong[open_ & asked])
            open_ &= wrong
        self.spell(index[open_], candidates[0, open_])
        return labels

    def body(self) -> bytes:
        spelt = np.concatenate(self._spelt).astype("<u2")
        planes = spelt.view(np.uint8).reshape(-1, 2).T.tobytes()  # low bytes, then high bytes
        flags = np.packbits(np.concatenate(self._flags)).tobytes()
        return len(spelt).to_bytes(4, "little") + planes + flags


class _Reader:
    """The decoding end: has what the writer noted."""

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
        start, self._spelt_at = self._spelt_at, self._spelt_at + len(index)
        return (guess + _checked(self._spelt[start : self._spelt_at], len(index))) % self._count

    def settle(self, index: np.ndarray, candidates: np.ndarray, fresh: np.ndarray) -> np.ndarray:
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
