"""Superpixels kept beside the images of a dataset: made once, few bytes each, read at every epoch.
The data stage writes them, the loaders of training and evaluation read them."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from caft.config import FlatImageConfig, ImageConfig, SuperpixelConfig
from caft.errors import ConfigError, DataError
from caft.label_maps import decode_label_map, encode_label_map, label_map_header
from caft.sfcn import SFCN
from caft.superpixels.labels import cell_grid, superpixel_labels


def encode_superpixels(
    images: Tensor, config: SuperpixelConfig, map_size_px: int, network: SFCN | None = None
) -> list[bytes]:
    """What the `superpixels` column of a dataset holds for each image.

    Args:
        images: (B, 3, S, S) uint8, whole images as `caft.transforms.eval_image` sees them, S being
            the model's input size.
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
