"""Superpixels kept beside the images of a dataset: made once, few bytes each, read at every epoch.
The data stage writes them, the loaders of training and evaluation read them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from caft.config import FlatImageConfig, ImageConfig, SuperpixelConfig
from caft.errors import ConfigError, DataError
from caft.superpixels.borders import HEADER as OLDER_HEADER
from caft.superpixels.borders import decode_borders
from caft.superpixels.labels import cell_grid, superpixel_labels
from caft.superpixels.network import SFCN

MAGIC, OLDER_MAGIC = b"SPX2", b"SPX1"
CHECKSUM = struct.Struct("<I")  # CRC-32 of all that follows it
HEADER = struct.Struct("<HHH")  # height, width, count
LAYOUTS = {MAGIC: HEADER, OLDER_MAGIC: OLDER_HEADER}
MAX_SIDE_PX = 2048  # no header can ask for more memory than such a map takes


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

    One or two bytes a pixel: a Parquet file compresses them to a sixth or less, and reading
    them costs next to nothing.

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
    raw = np.ascontiguousarray(labels, dtype=_label_type(count)).tobytes()
    sealed = HEADER.pack(height, width, count) + raw
    return MAGIC + CHECKSUM.pack(zlib.crc32(sealed)) + sealed


def decode_label_map(data: bytes) -> np.ndarray:
    """The inverse of `encode_label_map`: int32 (H, W).

    Raises:
        DataError: the bytes are no label map, or damaged.
    """
    magic, header, sealed = _open(data)
    if magic == OLDER_MAGIC:
        return decode_borders(sealed)
    labels = np.frombuffer(sealed, _label_type(header.count), offset=HEADER.size)
    if labels.size != header.height * header.width or labels.max() >= header.count:
        raise DataError(f"label map of {len(data)} bytes: damaged; write the column again")
    return labels.reshape(header.height, header.width).astype(np.int32)


def label_map_header(data: bytes) -> LabelMapHeader:
    """Size and number of labels of a stored map; raises DataError as `decode_label_map` does."""
    return _open(data)[1]


def _open(data: bytes) -> tuple[bytes, LabelMapHeader, bytes]:
    """Format, header, and what the checksum covers."""
    layout = LAYOUTS.get(data[: len(MAGIC)])
    start = len(MAGIC) + CHECKSUM.size
    if layout is None or len(data) < start + layout.size:
        raise DataError(f"label map of {len(data)} bytes: not one; write the column again")
    sealed = data[start:]
    if CHECKSUM.unpack_from(data, len(MAGIC))[0] != zlib.crc32(sealed):
        raise DataError(f"label map of {len(data)} bytes: damaged; write the column again")
    height, width, count = layout.unpack_from(sealed)[:3]
    if not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX):
        raise DataError(f"label map of {width} x {height} px: impossible; write the column again")
    return data[: len(MAGIC)], LabelMapHeader(height, width, count), sealed


def _label_type(count: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if count <= 256 else "<u2")
