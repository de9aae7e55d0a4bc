"""Superpixels of a dataset's images, made once and stored beside them.
Called where rows are written; of the data stage, this and similarity alone need PyTorch."""

from __future__ import annotations

from functools import cache

import pyarrow as pa
import torch

from caft.superpixels import encode_superpixels
from caft.superpixels.network import open_sfcn
from caft.transforms import eval_image
from pipelines.data.config import StoredSuperpixels

_network = cache(open_sfcn)  # a process writes many parts


def with_superpixels(rows: pa.Table, config: StoredSuperpixels) -> pa.Table:
    """Rows of the dataset with their label maps."""
    images = [eval_image(data, config.image_size_px) for data in rows["image"].to_pylist()]
    network = _network(config.segmenter) if config.segmenter.method == "sfcn" else None
    maps = encode_superpixels(torch.stack(images), config.segmenter, config.map_size_px, network)
    place = rows.schema.get_field_index("superpixels")
    return rows.set_column(place, "superpixels", pa.array(maps, pa.binary()))
