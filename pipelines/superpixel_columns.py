"""Superpixels on their way from the loaders, which have CPUs, to the model, which may have a GPU.
Train and evaluate share it: stored maps first, SEEDS where rows are decoded, SFCN in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from caft.config import SuperpixelConfig
from caft.preprocessing import eval_image
from caft.superpixels import encode_superpixels, superpixel_labels
from caft.superpixels.network import open_sfcn
from pipelines.data.config import StoredSuperpixels

MISSING = -1  # the label of a map that the model is to compute
_network = cache(open_sfcn)  # a process writes many parts


def pack_superpixels(
    images: Tensor, stored: Sequence[Tensor | None], config: SuperpixelConfig
) -> np.ndarray:
    """Label maps of n images as an int16 array that Ray Data carries.

    Args:
        images: (n, 3, S, S) uint8.
        stored: each image's own map (S, S), where its row has one.

    Returns:
        (n, S, S), where SFCN has still to compute the rows of -1; (n, 1, 1) if that is all.
    """
    side = images.shape[-1] if any(labels is not None for labels in stored) else 1
    empty = torch.full((side, side), MISSING)
    labels = torch.stack([empty if one is None else one for one in stored])
    if config.method != "sfcn":
        cut = partial(superpixel_labels, config=config)
        labels = complete_superpixels(images, None if side == 1 else labels, cut)
    return labels.to(torch.int16).numpy()


def unpack_superpixels(rows: Iterable[np.ndarray]) -> Tensor | None:
    """The maps of rows of packed arrays, (B, S, S) int16; None: the model computes them all."""
    maps = list(rows)
    side = max(labels.shape[-1] for labels in maps)
    if side == 1:
        return None
    return torch.from_numpy(np.stack([np.broadcast_to(one, (side, side)) for one in maps]))


def complete_superpixels(
    images: Tensor, given: Tensor | None, cut: Callable[[Tensor], Tensor]
) -> Tensor:
    """Whole label maps (B, S, S) on the images' device; what `given` lacks, `cut` makes.

    `given` lies on the host, as it was loaded: asking a device what it lacks would make it wait.
    """
    if given is None:
        return cut(images)
    rows = missing_rows(given)
    on_device = None if rows is None else rows.to(images.device)
    return filled_superpixels(images, given.to(images.device), on_device, cut)


def missing_rows(given: Tensor) -> Tensor | None:
    """(m,) int64 rows of `given` (B, S, S) whose maps the model is to compute; None: there are no
    such rows."""
    rows = (given[:, 0, 0] == MISSING).nonzero()[:, 0]
    return rows if len(rows) else None


def filled_superpixels(
    images: Tensor, given: Tensor, rows: Tensor | None, cut: Callable[[Tensor], Tensor]
) -> Tensor:
    """`given` (B, S, S) with the maps that `cut` makes in `rows` (m,), all on the images' device,
    which is not asked for anything."""
    labels = given.long()
    return labels if rows is None else labels.index_copy(0, rows, cut(images[rows]))


def with_superpixels(rows: pa.Table, config: StoredSuperpixels) -> pa.Table:
    """Rows of the dataset with their label maps."""
    images = [
        eval_image(data, config.image_size_px, "squash") for data in rows["image"].to_pylist()
    ]
    network = _network(config.segmenter) if config.segmenter.method == "sfcn" else None
    maps = encode_superpixels(torch.stack(images), config.segmenter, config.map_size_px, network)
    place = rows.schema.get_field_index("superpixels")
    return rows.set_column(place, "superpixels", pa.array(maps, pa.binary()))
