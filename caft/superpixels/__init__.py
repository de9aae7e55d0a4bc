"""Superpixels: label maps that cut an image into one segment per cell, and what is done with them.
They are the tokens of the image encoder's first group, and the pixels of its segmentation."""

from caft.superpixels.labels import (
    cell_grid,
    seeds_labels,
    superpixel_labels,
)
from caft.superpixels.pooling import nearest_live, pool_superpixels
from caft.superpixels.stored import encode_superpixels, stored_labels

__all__ = [
    "cell_grid",
    "encode_superpixels",
    "nearest_live",
    "pool_superpixels",
    "seeds_labels",
    "stored_labels",
    "superpixel_labels",
]
